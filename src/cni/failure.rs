use std::fmt;

use serde::Serialize;

use super::version::Version;

/// What runtimes decide by: the specification's well-known error codes, and from 100 on our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Code {
    IncompatibleVersion = 1,
    /// The message has the key and the value.
    UnsupportedField = 2,
    /// The runtime need not clean up.
    UnknownContainer = 3,
    /// The message has the names of the variables.
    InvalidEnvironment = 4,
    InputOutput = 5,
    Undecodable = 6,
    InvalidConfig = 7,
    TryAgainLater = 11,
    /// STATUS: no pod can be added.
    Unavailable = 50,
    /// STATUS: hardly any pod can be added.
    Limited = 51,
    Internal = 100,
    /// A name, a device or an address is in use.
    Taken = 101,
    /// CHECK: something is not as ADD left it.
    Broken = 102,
}

/// Why a call fails, as the runtime is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub(super) code: Code,
    /// What is wrong, in short.
    pub(super) message: String,
    /// The longer story; may be empty.
    pub(super) details: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorObject<'a> {
    cni_version: &'static str,
    code: u16,
    msg: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'a str,
}

impl Failure {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    pub(super) fn with_details(self, details: impl fmt::Display) -> Self {
        Self { details: details.to_string(), ..self }
    }

    /// A variable of the environment that is not usable: "CNI_IFNAME is missing".
    pub(super) fn variable(name: &str, fault: &str) -> Self {
        Self::new(Code::InvalidEnvironment, format!("{name} {fault}"))
    }

    /// A part of the network configuration that is not usable.
    pub(super) fn config(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidConfig, message)
    }

    /// The error object of the specification, in the version of the call.
    pub fn to_json(&self, version: Version) -> serde_json::Result<String> {
        let Self { code, message, details } = self;
        serde_json::to_string(&ErrorObject { cni_version: version.as_str(), code: *code as u16, msg: message, details })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, message, details } = self;
        write!(f, "{message} (code {})", *code as u16)?;
        if details.is_empty() { Ok(()) } else { write!(f, ": {details}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_object_has_the_members_of_the_specification() {
        let failure = Failure::variable("CNI_IFNAME", "is missing");
        let json = failure.to_json(Version::V0_4_0).unwrap();
        assert_eq!(json, r#"{"cniVersion":"0.4.0","code":4,"msg":"CNI_IFNAME is missing"}"#);
        let json = failure.with_details("a \"word\"").to_json(Version::V1_1_0).unwrap();
        assert_eq!(json, r#"{"cniVersion":"1.1.0","code":4,"msg":"CNI_IFNAME is missing","details":"a \"word\""}"#);
    }
}
