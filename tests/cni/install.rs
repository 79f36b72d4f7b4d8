//! `podwire cni install` and `podwire cni remove`.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::{Attachment, CniRuntime, Options, binary};
use crate::plugin::{Lab, addresses, reference};

/// Directories of a runtime, and how podwire is installed there.
struct Target {
    dir: tempfile::TempDir,
    runtime_dir: PathBuf,
}

impl Target {
    fn new(runtime_dir: &Path) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), runtime_dir: runtime_dir.into() }
    }

    fn bin(&self, name: &str) -> PathBuf {
        self.dir.path().join("opt/bin").join(name)
    }

    fn conf(&self, name: &str) -> PathBuf {
        self.dir.path().join("etc/net.d").join(name)
    }

    fn cni(&self, verb: &str, args: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(["cni", verb, "--output", "json"]).arg("--bin-dir").arg(self.bin("")).arg("--conf-dir");
        command.arg(self.conf("")).arg("--runtime-dir").arg(&self.runtime_dir).args(args).output().unwrap()
    }

    /// Must succeed; returns what was printed.
    #[track_caller]
    fn does(&self, verb: &str, args: &[&str]) -> Value {
        let output = self.cni(verb, args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Must fail with code 1 and these words.
    #[track_caller]
    fn refuses(&self, verb: &str, args: &[&str], words: &str) {
        let output = self.cni(verb, args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(1), true), "{said}");
        assert!(said.contains(words), "{words}: {said}");
    }

    /// The files below the two directories.
    fn files(&self) -> Vec<String> {
        let of = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().file_name());
        let mut files: Vec<_> =
            of(self.bin("")).chain(of(self.conf(""))).map(|name| name.into_string().unwrap()).collect();
        files.sort();
        files
    }
}

#[test]
fn an_installed_plugin_is_used_by_a_runtime_and_removed_again() {
    let (Some(portmap), Some(lab)) = (reference("portmap"), Lab::start(Options::KERNEL)) else { return };
    let target = Target::new(&lab.node.runtime_dir());
    target.refuses("install", &[], "containernetworking-plugins");
    assert!(target.files().is_empty());
    fs::create_dir_all(target.bin("")).unwrap();
    for plugin in ["portmap", "bandwidth"] {
        symlink(portmap.with_file_name(plugin), target.bin(plugin)).unwrap();
    }
    target.refuses("install", &["--cni-version", "1.1.0"], "portmap does not speak CNI 1.1.0");
    let installed = target.does("install", &[]);
    let paths = json!([target.bin("podwire"), target.conf("10-podwire.conflist")]);
    assert_eq!((&installed["changed"], &installed["warnings"]), (&paths, &json!([])));
    assert_eq!(fs::read(target.bin("podwire")).unwrap(), fs::read(binary()).unwrap());
    assert_eq!(fs::metadata(target.bin("podwire")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(target.files(), ["10-podwire.conflist", "bandwidth", "podwire", "portmap"]);

    let list: Value = serde_json::from_slice(&fs::read(target.conf("10-podwire.conflist")).unwrap()).unwrap();
    assert_eq!((&list["cniVersion"], &list["name"]), (&json!("1.0.0"), &json!("podwire")));
    let (runtime, pod) = (CniRuntime::new(vec![target.bin("")], list), lab.prefix.netns("pod"));
    let (container, ifname) = ("c1".to_owned(), "eth0".to_owned());
    let attachment = Attachment { container, ifname, netns: Some(pod.path()), ..Attachment::default() };
    let result = lab.node.host.netns.within(|| runtime.add(&attachment)).unwrap();
    assert!(lab.answers(&addresses(&result)[0]));
    lab.node.host.netns.within(|| runtime.del(&attachment)).unwrap();

    let again = target.does("install", &[]);
    assert_eq!(again["changed"], json!([]));
    let changed = target.does("install", &["--chain", "", "--name", "net", "--cni-version", "1.1.0"]);
    assert_eq!(changed["changed"], json!([target.conf("10-podwire.conflist")]));
    for mode in [0o644, 0o777] {
        fs::set_permissions(target.bin("podwire"), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(
            target.does("install", &["--chain", "", "--name", "net", "--cni-version", "1.1.0"])["changed"],
            json!([target.bin("podwire")])
        );
    }

    assert_eq!(
        target.does("remove", &[])["removed"],
        json!([target.conf("10-podwire.conflist"), target.bin("podwire")])
    );
    assert_eq!(target.does("remove", &[])["removed"], json!([]));
    assert_eq!(target.files(), ["bandwidth", "portmap"]);
}

#[test]
fn nothing_is_put_in_place_before_the_daemon_can_serve() {
    let dir = tempfile::tempdir().unwrap();
    let target = Target::new(&dir.path().join("run"));
    target.refuses("install", &["--chain", "", "--wait", "1"], "nothing is changed");
    assert!(target.files().is_empty());
    let Some(lab) = Lab::start(Options::KERNEL) else { return };
    let target = Target { runtime_dir: lab.node.runtime_dir(), ..target };
    target.does("install", &["--chain", "", "--wait", "1"]);
    assert_eq!(target.files(), ["10-podwire.conflist", "podwire"]);
    // As a plugin that is linked to libraries, in a container that has none.
    fs::write(target.bin("linked"), "#!/no/such/loader\n").unwrap();
    fs::set_permissions(target.bin("linked"), fs::Permissions::from_mode(0o755)).unwrap();
    let installed = target.does("install", &["--chain", "linked"]);
    assert!(installed["warnings"][0].as_str().unwrap().contains("linked needs libraries"), "{installed}");
}

#[test]
fn files_of_others_are_left_alone_and_told_of() {
    let Some(lab) = Lab::start(Options::KERNEL) else { return };
    let target = Target::new(&lab.node.runtime_dir());
    fs::create_dir_all(target.conf("")).unwrap();
    let foreign = r#"{"name":"cbr0","plugins":[{"type":"flannel"}]}"#;
    fs::write(target.conf("05-flannel.conflist"), foreign).unwrap();
    fs::write(target.conf("99-last.conf"), foreign).unwrap();
    fs::write(target.conf("00-backup.txt"), foreign).unwrap();
    let first = target.does("install", &["--chain", ""]);
    let warnings = first["warnings"].as_array().unwrap();
    assert!(
        warnings.len() == 1 && warnings[0].as_str().unwrap().contains("05-flannel.conflist comes before"),
        "{first}"
    );
    for verb in ["install", "remove"] {
        target.refuses(verb, &["--file", "05-flannel.conflist"], "05-flannel.conflist is not of podwire's making");
        target.refuses(verb, &["--file", "../x.conflist"], "../x.conflist");
        target.refuses(verb, &["--file", "x.txt"], "x.txt");
    }
    target.refuses("install", &["--chain", "../../bin/sh"], "../../bin/sh");
    target.refuses("install", &["--chain", "", "--name", "a b"], "a b");
    assert_eq!(target.cni("install", &["--cni-version", "0.2.0"]).status.code(), Some(2));

    target.does("install", &["--chain", "", "--file", "20-second.conflist"]);
    let removed = target.does("remove", &["--file", "20-second.conflist"]);
    assert_eq!(removed["removed"], json!([target.conf("20-second.conflist")]));
    assert!(removed["warnings"][0].as_str().unwrap().contains("10-podwire.conflist may call it"), "{removed}");
    fs::create_dir(target.conf("unreadable.conf")).unwrap();
    let removed = target.does("remove", &[]);
    assert_eq!(removed["removed"], json!([target.conf("10-podwire.conflist")]));
    assert!(removed["warnings"][0].as_str().unwrap().contains("unreadable.conf may call it"), "{removed}");
    fs::remove_dir(target.conf("unreadable.conf")).unwrap();
    target.does("remove", &[]);
    assert_eq!(target.files(), ["00-backup.txt", "05-flannel.conflist", "99-last.conf"]);
    assert_eq!(fs::read_to_string(target.conf("05-flannel.conflist")).unwrap(), foreign);
}
