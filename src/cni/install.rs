//! Putting the plugin where runtimes look for it, and taking it away.
//!
//! A runtime uses a plugin as soon as there is a configuration of it, so that is written last, when the daemon can
//! serve; and removed first. Each file is replaced in one step.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tempfile::NamedTempFile;

use super::conflist::{self, PLUGIN};
use super::values::is_identifier;
use super::version::Version;
use crate::control::api::{Reply, Request};
use crate::control::client::{self, ClientError};

/// This binary, whatever its name is by now.
const OWN_BINARY: &str = "/proc/self/exe";

/// How often the daemon is asked whether it can serve.
const POLL: Duration = Duration::from_millis(200);

/// Where the plugin is to be.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where the runtime looks for plugins.
    pub bin_dir: PathBuf,
    /// Where it looks for configurations,
    pub conf_dir: PathBuf,
    /// and what ours is called.
    pub file: String,
}

/// What the configuration is to say, and when.
#[derive(Clone, Debug)]
pub struct Plan {
    pub name: String,
    pub version: Version,
    /// Plugins to be called after ours.
    pub chain: Vec<String>,
    /// Of the daemon, absolute.
    pub runtime_dir: PathBuf,
    /// How long to wait for the daemon.
    pub patience: Duration,
}

/// What there is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Installed {
    pub binary: PathBuf,
    pub conflist: PathBuf,
    /// Which of the two were not so before.
    pub changed: Vec<PathBuf>,
    pub warnings: Vec<String>,
}

/// What was taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    pub removed: Vec<PathBuf>,
    pub warnings: Vec<String>,
}

/// Why the plugin is not in place, or not away.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("{what} `{text}` is not usable: letters, digits and any of `_.-`, the first a letter or a digit{more}")]
    Word { what: &'static str, text: String, more: &'static str },
    #[error(
        "{path} is missing or cannot be executed; Debian has it in the package containernetworking-plugins, in /usr/lib/cni: copy it from there, or leave it out of --chain (--chain '' for none)", path = .0.display()
    )]
    Chained(PathBuf),
    #[error("{path} does not speak CNI {1}; choose an earlier --cni-version, or leave it out of --chain", path = .0.display())]
    Dumb(PathBuf, &'static str),
    #[error("the daemon cannot serve after {} s: {why}; nothing is changed", .patience.as_secs())]
    NotReady { patience: Duration, why: String },
    #[error("{path} is not of podwire's making; remove it, or choose another name with --file", path = .0.display())]
    Foreign(PathBuf),
    #[error("{path}: {source}", path = .0.display(), source = .1)]
    Io(PathBuf, #[source] io::Error),
}

impl Place {
    fn binary(&self) -> PathBuf {
        self.bin_dir.join(PLUGIN)
    }

    fn conflist(&self) -> PathBuf {
        self.conf_dir.join(&self.file)
    }

    fn check(&self) -> Result<(), InstallError> {
        if is_identifier(&self.file) && conflist::is_read(Path::new(&self.file)) {
            return Ok(());
        }
        Err(InstallError::Word { what: "file name", text: self.file.clone(), more: ", at the end `.conflist`" })
    }

    /// Whether our place is taken by a configuration of somebody else.
    fn is_foreign(&self) -> Result<bool, InstallError> {
        let path = self.conflist();
        Ok(contents(&path)?.is_some_and(|text| !conflist::calls_podwire(&text)))
    }

    /// The other configurations of the directory, by name.
    fn others(&self) -> Result<BTreeSet<PathBuf>, InstallError> {
        let entries = match fs::read_dir(&self.conf_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries.map_err(at(&self.conf_dir))?,
        };
        let paths: io::Result<BTreeSet<_>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
        let mut paths = paths.map_err(at(&self.conf_dir))?;
        paths.retain(|path| conflist::is_read(path) && *path != self.conflist());
        Ok(paths)
    }
}

/// Puts the plugin and its configuration in place; what is there already stays.
pub fn install(place: &Place, plan: &Plan) -> Result<Installed, InstallError> {
    place.check()?;
    for (what, text) in plan.chain.iter().map(|kind| ("plugin", kind)).chain([("network name", &plan.name)]) {
        if !is_identifier(text) {
            return Err(InstallError::Word { what, text: text.clone(), more: "" });
        }
    }
    if place.is_foreign()? {
        return Err(InstallError::Foreign(place.conflist()));
    }
    let mut unasked = Vec::new();
    for plugin in plan.chain.iter().map(|kind| place.bin_dir.join(kind)) {
        let mode = fs::metadata(&plugin).ok().filter(fs::Metadata::is_file).map(|meta| meta.permissions().mode());
        if mode.is_none_or(|mode| mode & 0o111 == 0) {
            return Err(InstallError::Chained(plugin));
        }
        match speaks(&plugin, plan.version) {
            Ok(true) => {}
            Ok(false) => return Err(InstallError::Dumb(plugin, plan.version.as_str())),
            // The file is there, what is not is its loader: `execve(2)`.
            Err(error) if error.kind() == io::ErrorKind::NotFound => unasked.push(plugin),
            Err(error) => return Err(InstallError::Io(plugin, error)),
        }
    }
    // A plugin that is in use is replaced only by one that the daemon speaks with.
    wait_for_daemon(plan)?;
    let mut changed = Vec::new();
    if put_binary(&place.binary()).map_err(at(&place.binary()))? {
        changed.push(place.binary());
    }
    let list = conflist::conflist(plan.version, &plan.name, &plan.runtime_dir, &plan.chain);
    if put_conflist(&place.conflist(), &format!("{list:#}\n"))? {
        changed.push(place.conflist());
    }
    let earlier = place.others()?.into_iter().filter(|path| *path < place.conflist());
    let warn = |path: PathBuf| format!("{} comes before {} and is used in its place", path.display(), place.file);
    let unasked = unasked.into_iter().map(|path| {
        format!(
            "{} needs libraries that are not here, as in a container: it was not asked for its version",
            path.display()
        )
    });
    let warnings = unasked.chain(earlier.map(warn)).collect();
    Ok(Installed { binary: place.binary(), conflist: place.conflist(), changed, warnings })
}

/// Takes the configuration away, then the plugin, unless another configuration calls it.
pub fn remove(place: &Place) -> Result<Removed, InstallError> {
    place.check()?;
    if place.is_foreign()? {
        return Err(InstallError::Foreign(place.conflist()));
    }
    let mut removed = Removed::default();
    let mut take = |path: PathBuf| match fs::remove_file(&path) {
        Ok(()) => {
            removed.removed.push(path);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(InstallError::Io(path, error)),
    };
    take(place.conflist())?;
    // What cannot be read may call it.
    let calls = |path: &PathBuf| fs::read(path).map_or(true, |text| conflist::calls_podwire(&text));
    let users: Vec<_> = place.others()?.iter().filter(|path| calls(path)).map(|p| p.display().to_string()).collect();
    if users.is_empty() {
        take(place.binary())?;
    } else {
        let (binary, users) = (place.binary(), users.join(", "));
        removed.warnings.push(format!("{} stays, because {users} may call it", binary.display()));
    }
    Ok(removed)
}

/// Asks a plugin whether it speaks a version.
fn speaks(plugin: &Path, version: Version) -> io::Result<bool> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versions {
        supported_versions: Vec<String>,
    }
    let mut asked = Command::new(plugin)
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    if let Some(mut stdin) = asked.stdin.take() {
        let question = json!({ "cniVersion": version.as_str() }).to_string();
        match stdin.write_all(question.as_bytes()) {
            // It answers without being asked.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
    }
    let Versions { supported_versions } = serde_json::from_slice(&asked.wait_with_output()?.stdout)?;
    Ok(supported_versions.iter().any(|spoken| spoken == version.as_str()))
}

fn wait_for_daemon(plan: &Plan) -> Result<(), InstallError> {
    let end = Instant::now() + plan.patience;
    loop {
        let why = match client::call(&plan.runtime_dir, Request::Ready) {
            Ok(Reply::Ready(ready)) => match ready.problem {
                None => return Ok(()),
                Some(problem) => problem,
            },
            Ok(other) => ClientError::Unexpected(Box::new(other)).to_string(),
            Err(error) => error.to_string(),
        };
        if Instant::now() >= end {
            return Err(InstallError::NotReady { patience: plan.patience, why });
        }
        thread::sleep(POLL);
    }
}

/// Copies this binary; false when it is there already.
fn put_binary(path: &Path) -> io::Result<bool> {
    let own = || File::open(OWN_BINARY);
    let is_there = match File::open(path) {
        Ok(there) => has_mode(&there, 0o755)? && is_same(own()?, there)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    if !is_there {
        replace(path, 0o755, &mut own()?)?;
    }
    Ok(!is_there)
}

/// Writes the configuration; false when it is there already.
fn put_conflist(path: &Path, text: &str) -> Result<bool, InstallError> {
    let is_ours = || File::open(path).and_then(|there| has_mode(&there, 0o644)).map_err(at(path));
    if contents(path)?.is_some_and(|there| there == text.as_bytes()) && is_ours()? {
        return Ok(false);
    }
    replace(path, 0o644, &mut text.as_bytes()).map_err(at(path))?;
    Ok(true)
}

/// Puts a file with the bytes of `source` in the place of `path`, durably and in one step.
fn replace(path: &Path, mode: u32, source: &mut impl Read) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    let mut file = NamedTempFile::new_in(dir)?;
    io::copy(source, &mut file)?;
    file.flush()?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(dir)?.sync_all()
}

/// Whether a file is of our own user and has just this mode.
fn has_mode(file: &File, mode: u32) -> io::Result<bool> {
    let meta = file.metadata()?;
    Ok(meta.uid() == geteuid().as_raw() && meta.mode() & 0o7777 == mode)
}

fn is_same(mut one: File, mut other: File) -> io::Result<bool> {
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut ours, mut theirs) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let len = one.read(&mut ours)?;
        if len == 0 {
            return Ok(true);
        }
        other.read_exact(&mut theirs[..len])?;
        if ours[..len] != theirs[..len] {
            return Ok(false);
        }
    }
}

/// What a file has in it, if there is one.
fn contents(path: &Path) -> Result<Option<Vec<u8>>, InstallError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(InstallError::Io(path.to_owned(), error)),
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::Io(path, source)
}
