use std::fmt;

use serde::Deserialize;

/// The versions of the specification that are spoken; later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    /// Oldest first.
    pub const ALL: [Self; 5] = [Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// Where the runtime names none, or one that is not spoken.
    pub const LATEST: Self = Self::V1_1_0;

    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version of this name, if it is spoken.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == name)
    }

    /// The version that a network configuration announces, if it can be read and is spoken.
    pub(super) fn announced(config: &[u8]) -> Option<Self> {
        Self::named(&announced(config).ok()?)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a network configuration says its version is. One that says nothing is of 0.1.0, as `libcni` has it.
pub(super) fn announced(config: &[u8]) -> serde_json::Result<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        cni_version: Option<String>,
    }
    let head: Head = serde_json::from_slice(config)?;
    Ok(head.cni_version.unwrap_or_else(|| "0.1.0".to_owned()))
}
