//! The environment of a call, checked: the command, the attachment it is about, and the extra arguments.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use super::failure::Failure;
use super::values::{is_identifier, parse_address};
use crate::ids::is_device_name;
use crate::wire::Mac;

/// Leaves room for a device name in the name of a file; runtimes use 64 hexadecimal digits.
const MAX_CONTAINER_ID: usize = 200;

/// The kernel's `PATH_MAX`, the final zero not counted.
const MAX_PATH: usize = 4095;

/// What the runtime sets; `CNI_PATH` is not looked at, because nothing is executed.
#[derive(Clone, Debug, Default)]
pub struct Variables {
    pub command: Option<OsString>,
    pub container_id: Option<OsString>,
    pub netns: Option<OsString>,
    pub ifname: Option<OsString>,
    pub args: Option<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Del,
    Check,
    Version,
    Status,
    Gc,
}

/// A container's device in a network; on one node no two have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub(super) container: String,
    pub(super) ifname: String,
}

/// `CNI_ARGS`, as far as it is of use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    pub pod_namespace: Option<String>,
    pub pod_name: Option<String>,
    pub address: Option<IpAddr>,
    pub mac: Option<Mac>,
}

impl Variables {
    /// Those of this process.
    pub(super) fn of_process() -> Self {
        Self {
            command: env::var_os("CNI_COMMAND"),
            container_id: env::var_os("CNI_CONTAINERID"),
            netns: env::var_os("CNI_NETNS"),
            ifname: env::var_os("CNI_IFNAME"),
            args: env::var_os("CNI_ARGS"),
        }
    }

    pub(super) fn command(&self) -> Result<Command, Failure> {
        match required("CNI_COMMAND", self.command.as_ref())? {
            "ADD" => Ok(Command::Add),
            "DEL" => Ok(Command::Del),
            "CHECK" => Ok(Command::Check),
            "VERSION" => Ok(Command::Version),
            "STATUS" => Ok(Command::Status),
            "GC" => Ok(Command::Gc),
            _ => Err(Failure::variable("CNI_COMMAND", "is not one of ADD, DEL, CHECK, STATUS, GC, VERSION")),
        }
    }

    pub(super) fn attachment(&self) -> Result<Attachment, Failure> {
        let container = required("CNI_CONTAINERID", self.container_id.as_ref())?;
        let ifname = required("CNI_IFNAME", self.ifname.as_ref())?;
        let attachment = Attachment { container: container.to_owned(), ifname: ifname.to_owned() };
        match attachment.fault() {
            Some((Part::Container, fault)) => Err(Failure::variable("CNI_CONTAINERID", &fault)),
            Some((Part::Ifname, fault)) => Err(Failure::variable("CNI_IFNAME", &fault)),
            None => Ok(attachment),
        }
    }

    /// A path that means the same to the daemon.
    pub(super) fn netns(&self) -> Result<PathBuf, Failure> {
        let path = PathBuf::from(required("CNI_NETNS", self.netns.as_ref())?);
        if !path.is_absolute() || path.as_os_str().len() > MAX_PATH {
            return Err(Failure::variable("CNI_NETNS", "is not an absolute path"));
        }
        Ok(path)
    }

    pub(super) fn arguments(&self) -> Result<Arguments, Failure> {
        let text = match &self.args {
            Some(text) => text.to_str().ok_or_else(|| Failure::variable("CNI_ARGS", "is not UTF-8"))?,
            None => "",
        };
        Arguments::parse(text).map_err(|fault| Failure::variable("CNI_ARGS", &fault))
    }
}

fn required<'a>(name: &str, value: Option<&'a OsString>) -> Result<&'a str, Failure> {
    let value = value.filter(|value| !value.is_empty()).ok_or_else(|| Failure::variable(name, "is missing"))?;
    value.to_str().ok_or_else(|| Failure::variable(name, "is not UTF-8"))
}

/// Which part of an attachment is at fault.
pub(super) enum Part {
    Container,
    Ifname,
}

impl Attachment {
    /// What it is called on this node.
    pub(super) fn name(&self) -> String {
        format!("{}:{}", self.container, self.ifname)
    }

    /// What is not usable about it.
    pub(super) fn fault(&self) -> Option<(Part, String)> {
        if self.container.len() > MAX_CONTAINER_ID || !is_identifier(&self.container) {
            let rule = "is not 1 to {} letters, digits, or any of `_.-`, the first a letter or a digit";
            return Some((Part::Container, rule.replace("{}", &MAX_CONTAINER_ID.to_string())));
        }
        if !is_device_name(&self.ifname) {
            let rule = "is not 1 to 15 visible characters without `/`, `:` and `%`, nor may it be `.` or `..`";
            return Some((Part::Ifname, rule.to_owned()));
        }
        None
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.ifname, self.container)
    }
}

impl Arguments {
    /// Reads `KEY=VALUE;KEY=VALUE`, or says what is wrong with it. Of a key that comes twice the last counts.
    fn parse(text: &str) -> Result<Self, String> {
        let mut known = Self::default();
        let (mut foreign, mut ignore_unknown) = (None, false);
        for pair in text.split(';').filter(|_| !text.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| format!("has `{pair}`, which is not KEY=VALUE"))?;
            if key.is_empty() {
                return Err(format!("has `{pair}`, whose key is empty"));
            }
            let unusable = || format!("has `{pair}`, whose value is not usable");
            match key {
                "IgnoreUnknown" => ignore_unknown = parse_switch(value).ok_or_else(unusable)?,
                "K8S_POD_NAMESPACE" => known.pod_namespace = parse_label(value),
                "K8S_POD_NAME" => known.pod_name = parse_label(value),
                "K8S_POD_INFRA_CONTAINER_ID" | "K8S_POD_UID" => {}
                "IP" => known.address = Some(parse_address(value).ok_or_else(unusable)?),
                "MAC" => known.mac = Some(value.parse().map_err(|_| unusable())?),
                _ => foreign = Some(key),
            }
        }
        match foreign {
            Some(key) if !ignore_unknown => Err(format!("has `{key}`, which is unknown, and no IgnoreUnknown=1")),
            _ => Ok(known),
        }
    }

    /// What people call the container: `namespace/pod`, or what of it is known.
    pub(super) fn workload(&self) -> Option<String> {
        match (&self.pod_namespace, &self.pod_name) {
            (Some(namespace), Some(name)) => Some(format!("{namespace}/{name}")),
            (_, name) => name.clone(),
        }
    }
}

/// A switch as `libcni` writes and reads it.
fn parse_switch(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// A name of Kubernetes or of podman, if it is one: it only tells people what the container is.
fn parse_label(value: &str) -> Option<String> {
    (value.len() <= 253 && is_identifier(value)).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::failure::Code;

    fn arguments(text: &str) -> Result<Arguments, Failure> {
        Variables { args: Some(text.into()), ..Variables::default() }.arguments()
    }

    #[test]
    fn what_runtimes_give_as_arguments_is_understood() {
        assert_eq!(arguments("").unwrap(), Arguments::default());
        let containerd = "K8S_POD_INFRA_CONTAINER_ID=0af;K8S_POD_UID=8-1;IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;FOO=";
        assert_eq!(arguments(containerd).unwrap().workload().as_deref(), Some("default/web-0"));
        assert_eq!(arguments("IgnoreUnknown=1;K8S_POD_NAME=my_web").unwrap().workload().as_deref(), Some("my_web"));
        assert_eq!(arguments("K8S_POD_NAME=a/b;IgnoreUnknown=True;FOO=1").unwrap().workload(), None);
        let last = arguments("IP=10.0.0.1;IP=10.0.0.2").unwrap();
        assert_eq!(last.address, Some("10.0.0.2".parse().unwrap()));
        let asked = arguments("IP=10.244.1.7/24;MAC=02:00:00:00:00:07").unwrap();
        assert_eq!(asked.address, Some("10.244.1.7".parse().unwrap()));
        assert_eq!(asked.mac, Some(Mac([2, 0, 0, 0, 0, 7])));
    }

    #[test]
    fn malformed_or_unknown_arguments_are_refused_by_name() {
        let cases = [
            ("IP", "not KEY=VALUE"),
            (";", "not KEY=VALUE"),
            ("IgnoreUnknown=1;", "not KEY=VALUE"),
            ("=1", "key is empty"),
            ("FOO=1", "`FOO`"),
            ("FOO=1;IgnoreUnknown=0", "`FOO`"),
            ("IgnoreUnknown=yes", "not usable"),
            ("IP=10.0.0.300", "not usable"),
            ("IP=10.0.0.1/33", "not usable"),
            ("MAC=02:00", "not usable"),
        ];
        for (text, reason) in cases {
            let failure = arguments(text).unwrap_err();
            assert_eq!(failure.code, Code::InvalidEnvironment, "{text}");
            assert!(failure.message.starts_with("CNI_ARGS ") && failure.message.contains(reason), "{failure}");
        }
    }

    #[test]
    fn an_attachment_has_a_usable_id_and_device() {
        let attachment = |container: &str, ifname: &str| {
            let variables =
                Variables { container_id: Some(container.into()), ifname: Some(ifname.into()), ..Variables::default() };
            variables.attachment()
        };
        assert_eq!(attachment("0a.b_c-d", "eth0").unwrap().name(), "0a.b_c-d:eth0");
        let long = "x".repeat(MAX_CONTAINER_ID + 1);
        for container in ["", "-a", "../a", "a/b", "a b", "a:b", "wéb", "a\nb", &long] {
            let failure = attachment(container, "eth0").unwrap_err();
            assert!(failure.message.starts_with("CNI_CONTAINERID "), "{failure}");
        }
        for ifname in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "eth%d", "sixteen-letters-", "é"] {
            let failure = attachment("a", ifname).unwrap_err();
            assert!(failure.message.starts_with("CNI_IFNAME "), "{failure}");
        }
    }
}
