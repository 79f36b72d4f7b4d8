//! The files that podwire keeps, and those that others read.

use super::evidence::Evidence;
use super::finding::Opinion;

/// What the pods of a full node, and the notes of a plugin, take at most, in bytes.
const ROOM: u64 = 1 << 20;

pub(super) fn runtime_dir(evidence: &Evidence) -> Vec<Opinion> {
    let path = evidence.place.runtime_dir.display();
    let dir = match &evidence.place.runtime {
        Ok(Some(dir)) => dir,
        Ok(None) => return vec![Opinion::ok(format!("{path} does not exist yet; a daemon makes it"))],
        Err(why) => return vec![Opinion::unseen(&format!("{path}"), why)],
    };
    if !dir.is_dir {
        return vec![
            Opinion::error(format!("{path} is not a directory"), "a daemon keeps its socket and its state in it")
                .advice("name another one with --runtime-dir, or remove it"),
        ];
    }
    if dir.mode & 0o022 != 0 {
        return vec![
            Opinion::error(
                format!("{path} can be written by others (mode {:o})", dir.mode & 0o7777),
                "a daemon refuses it: they could take its socket",
            )
            .command(format!("chmod 0700 {path}")),
        ];
    }
    if !dir.is_ours {
        return vec![
            Opinion::warning(format!("{path} belongs to another user"), "its owner can take the daemon's socket")
                .command(format!("chown root: {path}")),
        ];
    }
    if let Some(why) = &dir.unwritable {
        return vec![
            Opinion::error(
                format!("{path} cannot be written: {why}"),
                "pods cannot be attached or detached, nor a daemon started",
            )
            .command(format!("mount -o remount,rw {path}")),
        ];
    }
    let seen = format!("{path} has {} KiB free", dir.free_bytes >> 10);
    vec![if dir.free_bytes < ROOM {
        Opinion::error(seen, "what is attached cannot be written down: attach and detach fail")
            .advice(format!("free space on the file system of {path} (df {path})"))
    } else {
        Opinion::ok(seen)
    }]
}

pub(super) fn cni_order(evidence: &Evidence) -> Vec<Opinion> {
    let dir = evidence.place.cni_dir.display();
    let files = match &evidence.place.cni {
        Ok(files) => files,
        Err(why) => return vec![Opinion::unseen(&format!("{dir}"), why)],
    };
    let Some(ours) = files.iter().position(|file| file.is_ours) else {
        return vec![Opinion::ok(format!("no configuration of podwire in {dir}: pods are attached by hand"))];
    };
    let name = &files[ours].name;
    vec![match files[..ours].first() {
        None => Opinion::ok(format!("{dir}/{name} is read first")),
        Some(first) => Opinion::error(
            format!("{dir}/{} is read before {name}", first.name),
            "container runtimes take the first file: new pods get another network than podwire's",
        )
        .command(format!("mv {dir}/{0} {dir}/{0}.disabled", first.name)),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::evidence::{CniFile, Directory};
    use crate::doctor::finding::Severity;
    use crate::doctor::sample::assert_says;

    fn dir(evidence: &mut Evidence) -> &mut Directory {
        evidence.place.runtime.as_mut().unwrap().as_mut().unwrap()
    }

    #[test]
    fn a_runtime_directory_that_cannot_be_used_is_named() {
        assert_says(runtime_dir, |e| dir(e).mode = 0o1777, Severity::Error, "chmod 0700 /run/podwire");
        assert_says(runtime_dir, |e| dir(e).unwritable = Some("read-only".into()), Severity::Error, "read-only");
        assert_says(runtime_dir, |e| dir(e).free_bytes = 4096, Severity::Error, "4 KiB free");
        assert_says(runtime_dir, |e| dir(e).is_ours = false, Severity::Warning, "another user");
        assert_says(runtime_dir, |e| dir(e).is_dir = false, Severity::Error, "not a directory");
        assert_says(runtime_dir, |e| e.place.runtime = Ok(None), Severity::Ok, "does not exist yet");
    }

    #[test]
    fn the_first_configuration_of_the_directory_counts() {
        let file = |name: &str| CniFile { name: name.into(), is_ours: false };
        let other = file("05-bridge.conflist");
        let before = |e: &mut Evidence| e.place.cni.as_mut().unwrap().insert(0, other.clone());
        assert_says(cni_order, before, Severity::Error, "mv /etc/cni/net.d/05-bridge.conflist");
        let after = |e: &mut Evidence| e.place.cni.as_mut().unwrap().push(file("99-loopback.conf"));
        assert_says(cni_order, after, Severity::Ok, "is read first");
        let none = |e: &mut Evidence| e.place.cni = Ok(vec![other.clone()]);
        assert_says(cni_order, none, Severity::Ok, "by hand");
    }
}
