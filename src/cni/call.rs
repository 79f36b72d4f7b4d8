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

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::fs;
    use std::os::unix::ffi::OsStringExt as _;
    use std::path::Path;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    /// The variables and the configuration of an input of the fuzz target (`tests/fuzz`).
    fn parse(input: &[u8]) -> Result<Call, Failure> {
        let mut parts = input.splitn(6, |byte| *byte == 0);
        let mut variable =
            || parts.next().filter(|part| !part.is_empty()).map(|part| OsString::from_vec(part.to_vec()));
        let variables = Variables {
            command: variable(),
            container_id: variable(),
            netns: variable(),
            ifname: variable(),
            args: variable(),
        };
        Call::parse(&variables, parts.next().unwrap_or_default())
    }

    fn seeds() -> Vec<Vec<u8>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds/cni");
        fs::read_dir(dir).unwrap().map(|seed| fs::read(seed.unwrap().path()).unwrap()).collect()
    }

    #[test]
    fn the_seeds_of_the_fuzz_target_are_calls() {
        let seeds = seeds();
        assert!(seeds.len() > 5);
        for seed in seeds {
            assert!(parse(&seed).is_ok(), "{}: {:?}", String::from_utf8_lossy(&seed), parse(&seed));
        }
    }

    fn damaged_seed() -> impl Strategy<Value = Vec<u8>> {
        let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
        (prop::sample::select(seeds()), damage).prop_map(|(mut input, damage)| {
            for (at, byte) in damage {
                let at = at.index(input.len());
                input[at] = byte;
            }
            input
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

        #[test]
        fn noise_is_a_call_or_an_error_object(
            input in prop_oneof![4 => damaged_seed(), 1 => prop::collection::vec(any::<u8>(), 0..300)],
        ) {
            if let Err(failure) = parse(&input) {
                let object: Value = serde_json::from_str(&failure.to_json(Version::LATEST).unwrap()).unwrap();
                prop_assert!(object["code"].as_u64().is_some_and(|code| (1..100).contains(&code)), "{}", object);
                prop_assert!(object["msg"].as_str().is_some_and(|message| !message.is_empty()), "{}", object);
            }
        }
    }
}
