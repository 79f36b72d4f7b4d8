//! The directory of a network of the CNI plugin host-local, as its disk store writes it
//! (`plugins/ipam/host-local/backend/disk` of containernetworking/plugins): one file an address, named by it, with the
//! container's id and, since 0.7, after a line break the name of its interface; beside these a lock and the addresses
//! given out last.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::api::ipam::{Entry, Skipped};
use super::foreign_file;

/// Where host-local keeps its networks unless it is told otherwise.
const DEFAULT_DIR: &str = "/var/lib/cni/networks";

/// The files that are no addresses.
const LOCK: &str = "lock";
const LAST: &str = "last_reserved_ip.";

/// How many files are looked at, and how long one may be, in bytes.
const MOST_FILES: usize = 1 << 16;
const MOST_BYTES: u64 = 1024;

/// What such a directory says.
#[derive(Debug, PartialEq, Eq)]
pub struct HostLocal {
    /// The network, after which the directory is called.
    pub network: String,
    pub entries: Vec<Entry>,
    /// Files that say nothing.
    pub skipped: Vec<Skipped>,
}

/// The directory of a network that is given by its name or by the directory's path.
pub fn dir_of(network: &Path) -> PathBuf {
    let is_name = network.parent() == Some(Path::new("")) && network.file_name().is_some();
    if is_name { Path::new(DEFAULT_DIR).join(network) } else { network.to_owned() }
}

/// Reads the directory; a file that cannot be understood is skipped and named.
pub fn read(dir: &Path) -> io::Result<HostLocal> {
    let network = dir.canonicalize()?.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut read = HostLocal { network: network.unwrap_or_default(), entries: Vec::new(), skipped: Vec::new() };
    for (count, file) in fs::read_dir(dir)?.enumerate() {
        let file = file?;
        let name = file.file_name().to_string_lossy().into_owned();
        if count == MOST_FILES {
            let why = format!("more than {MOST_FILES} files; the rest was not looked at");
            read.skipped.push(Skipped { what: dir.display().to_string(), why });
            break;
        }
        if name == LOCK || name.starts_with(LAST) {
            continue;
        }
        match entry(&name, &file.path()) {
            Ok(entry) => read.entries.push(entry),
            Err(why) => read.skipped.push(Skipped { what: name, why }),
        }
    }
    read.entries.sort_by_key(|entry| entry.address);
    read.skipped.sort_by(|a, b| a.what.cmp(&b.what));
    Ok(read)
}

fn entry(name: &str, path: &Path) -> Result<Entry, String> {
    let address = name.parse().map_err(|_| "its name is not an address".to_owned())?;
    let text = foreign_file::read(path, MOST_BYTES).map_err(|error| error.to_string())?;
    understand(address, &text)
}

fn understand(address: IpAddr, text: &str) -> Result<Entry, String> {
    let mut lines = text.trim().lines();
    let word = |line: &str| {
        let is_word = !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_graphic());
        is_word.then(|| line.to_owned()).ok_or_else(|| "it names no container".to_owned())
    };
    let container = word(lines.next().unwrap_or_default().trim())?;
    let ifname = lines.next().map(|line| word(line.trim())).transpose()?;
    match lines.next() {
        Some(_) => Err("it has more than two lines".to_owned()),
        None => Ok(Entry { address, container, ifname }),
    }
}

/// What holds of any file: it says nothing, or what it says is what host-local would write for it.
#[cfg(fuzzing)]
pub fn fuzz(text: &str) {
    let address = IpAddr::from([10, 0, 0, 1]);
    if let Ok(entry) = understand(address, text) {
        let ifname = entry.ifname.as_ref().map_or_else(String::new, |ifname| format!("\r\n{ifname}"));
        assert_eq!(understand(address, &format!("{}{ifname}", entry.container)), Ok(entry));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_network_is_given_by_its_name_or_by_its_directory() {
        for (given, dir) in [
            ("cbr0", "/var/lib/cni/networks/cbr0"),
            ("/elsewhere/cbr0", "/elsewhere/cbr0"),
            ("./cbr0", "./cbr0"),
            ("a/b", "a/b"),
            (".", "."),
        ] {
            assert_eq!(dir_of(Path::new(given)), Path::new(dir), "{given}");
        }
    }

    #[test]
    fn addresses_are_read_as_host_local_writes_them_and_the_rest_is_named() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("cbr0");
        fs::create_dir(&dir).unwrap();
        let good: [(&str, &[u8]); 4] = [
            ("10.244.1.5", b"c5\r\neth0"),
            ("10.244.1.4", b"c4\r\neth0\r\n"),
            ("10.244.1.3", b"c3"),
            ("fd00:244:1::5", b"c5\r\neth0"),
        ];
        let long = vec![b'x'; 2000];
        let bad: [(&str, &[u8], &str); 6] = [
            ("10.244.1.6", b"", "names no container"),
            ("10.244.1.7", b"a b\r\neth0", "names no container"),
            ("10.244.1.8", b"c8\r\neth0\r\nmore", "more than two lines"),
            ("10.244.1.9", &long, "longer than 1024 bytes"),
            ("10.244.1.10", b"\xff\xfe", "not text"),
            ("10.244.1", b"c\r\neth0", "not an address"),
        ];
        for (name, text) in good.iter().copied().chain(bad.iter().map(|(name, text, _)| (*name, *text))) {
            fs::write(dir.join(name), text).unwrap();
        }
        fs::write(dir.join("lock"), "").unwrap();
        fs::write(dir.join("last_reserved_ip.0"), "10.244.1.5").unwrap();
        fs::create_dir(dir.join("10.244.1.12")).unwrap();
        symlink("/etc/hostname", dir.join("10.244.1.13")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(dir.join("10.244.1.14")).status().unwrap().success());

        let found = read(&dir).unwrap();
        let entry = |address: &str, container: &str, ifname: Option<&str>| Entry {
            address: address.parse().unwrap(),
            container: container.into(),
            ifname: ifname.map(str::to_owned),
        };
        let expected = [
            entry("10.244.1.3", "c3", None),
            entry("10.244.1.4", "c4", Some("eth0")),
            entry("10.244.1.5", "c5", Some("eth0")),
            entry("fd00:244:1::5", "c5", Some("eth0")),
        ];
        assert_eq!((found.network.as_str(), &found.entries[..]), ("cbr0", &expected[..]));
        let why =
            |name: &str| found.skipped.iter().find(|skipped| skipped.what == name).map(|skipped| skipped.why.clone());
        for (name, _, reason) in bad {
            assert!(why(name).is_some_and(|why| why.contains(reason)), "{name}: {:?}", why(name));
        }
        for name in ["10.244.1.12", "10.244.1.14"] {
            assert!(why(name).is_some_and(|why| why.contains("not a file")), "{name}: {:?}", why(name));
        }
        assert!(why("10.244.1.13").is_some());
        assert_eq!(found.skipped.len(), bad.len() + 3);
    }
}
