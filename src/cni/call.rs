use std::net::IpAddr;
use std::path::PathBuf;

use super::config::{Dns, Network, Wishes, previous_result, valid_attachments};
use super::environment::{Attachment, Command, Variables};
use super::failure::Failure;
use super::result::CniResult;
use super::version::Version;
use crate::control::api::{Attach, Owner};
use crate::wire::Mac;

/// What a runtime wants, understood and checked.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Which versions are spoken; asked in this one.
    Version(Version),
    Add(Box<Add>),
    Del(Network, Attachment),
    Check(Box<Check>),
    Status(Network),
    /// Remove all attachments of the network but these.
    Gc(Network, Vec<Attachment>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Add {
    pub(super) network: Network,
    pub(super) attachment: Attachment,
    pub(super) netns: PathBuf,
    addresses: Vec<IpAddr>,
    mac: Option<Mac>,
    /// Whether the configuration has a part in what is asked for, or only the environment.
    pub(super) by_config: bool,
    workload: Option<String>,
    pub(super) dns: Option<Dns>,
    /// What plugins earlier in the chain have made.
    pub(super) previous: CniResult,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    pub(super) network: Network,
    pub(super) attachment: Attachment,
    pub(super) netns: PathBuf,
    pub(super) expected: CniResult,
}

impl Call {
    /// Reads a call from the environment and the network configuration.
    ///
    /// Of a DEL only what is needed is looked at, so that it succeeds where its ADD was refused. A VERSION needs
    /// nothing: runtimes ask it with an environment that they made up.
    pub fn parse(variables: &Variables, config: &[u8]) -> Result<Self, Failure> {
        match variables.command()? {
            Command::Add => Add::parse(variables, config).map(Box::new).map(Self::Add),
            Command::Check => Check::parse(variables, config).map(Box::new).map(Self::Check),
            Command::Del => {
                let attachment = variables.attachment()?;
                Ok(Self::Del(Network::parse(config)?, attachment))
            }
            Command::Gc => {
                let network = Network::since(config, Version::V1_1_0, "GC")?;
                Ok(Self::Gc(network, valid_attachments(config)?))
            }
            Command::Status => Ok(Self::Status(Network::since(config, Version::V1_1_0, "STATUS")?)),
            Command::Version => Ok(Self::Version(Version::announced(config).unwrap_or(Version::LATEST))),
        }
    }
}

impl Add {
    fn parse(variables: &Variables, config: &[u8]) -> Result<Self, Failure> {
        let attachment = variables.attachment()?;
        let netns = variables.netns()?;
        let arguments = variables.arguments()?;
        let network = Network::parse(config)?;
        let Wishes { addresses, mac, by_config, dns, previous } = Wishes::parse(config, &arguments)?;
        let (workload, previous) = (arguments.workload(), previous.unwrap_or_default());
        Ok(Self { network, attachment, netns, addresses, mac, by_config, workload, dns, previous })
    }

    /// What to ask of the daemon.
    pub(super) fn request(&self) -> Attach {
        Attach {
            name: self.attachment.name(),
            netns: self.netns.clone(),
            ifname: self.attachment.ifname.clone(),
            addresses: self.addresses.clone(),
            mac: self.mac,
            owner: Some(Owner {
                network: self.network.name.clone(),
                container: self.attachment.container.clone(),
                workload: self.workload.clone(),
            }),
        }
    }
}

impl Check {
    fn parse(variables: &Variables, config: &[u8]) -> Result<Self, Failure> {
        let attachment = variables.attachment()?;
        let netns = variables.netns()?;
        let network = Network::since(config, Version::V0_4_0, "CHECK")?;
        Ok(Self { network, attachment, netns, expected: previous_result(config)? })
    }
}
