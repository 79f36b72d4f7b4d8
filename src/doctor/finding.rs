use serde::Serialize;

/// How bad it is, from the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing: it costs performance, or could not be looked at.
    Note,
    /// Packets may be lost, or the fast path is not used.
    Warning,
    /// podwire cannot work so.
    Error,
}

/// What can be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fix {
    /// A line for root's shell on the node.
    Command(String),
    /// A change that people make.
    Advice(String),
    /// A profile of `tuning/`, which sets it.
    Tuning(Profile),
}

/// A profile of `tuning/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    LowLatency,
    Throughput,
    Small,
}

impl Profile {
    /// The name of its file.
    pub fn name(self) -> &'static str {
        match self {
            Self::LowLatency => "low-latency",
            Self::Throughput => "throughput",
            Self::Small => "small",
        }
    }
}

/// What one look at the evidence says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Opinion {
    pub severity: Severity,
    /// What was seen.
    pub evidence: String,
    /// What it means; empty when all is well.
    pub meaning: String,
    pub fix: Option<Fix>,
}

/// An opinion under the stable name of its check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub id: &'static str,
    #[serde(flatten)]
    pub opinion: Opinion,
}

impl Opinion {
    /// All is well.
    pub fn ok(evidence: impl Into<String>) -> Self {
        Self::new(Severity::Ok, evidence, "")
    }

    pub fn note(evidence: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(Severity::Note, evidence, meaning)
    }

    pub fn warning(evidence: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(Severity::Warning, evidence, meaning)
    }

    pub fn error(evidence: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self::new(Severity::Error, evidence, meaning)
    }

    /// What could not be looked at, and why.
    pub fn unseen(what: &str, why: &str) -> Self {
        Self::note(
            format!("{what} cannot be seen: {why}"),
            "nothing is known about it; root in the node's namespaces sees more",
        )
    }

    fn new(severity: Severity, evidence: impl Into<String>, meaning: impl Into<String>) -> Self {
        Self { severity, evidence: evidence.into(), meaning: meaning.into(), fix: None }
    }

    /// The same with a command that puts it right.
    #[must_use]
    pub fn command(self, line: impl Into<String>) -> Self {
        Self { fix: Some(Fix::Command(line.into())), ..self }
    }

    /// The same with what people can do.
    #[must_use]
    pub fn advice(self, text: impl Into<String>) -> Self {
        Self { fix: Some(Fix::Advice(text.into())), ..self }
    }

    /// The same with the profile that sets it.
    #[must_use]
    pub fn tuning(self, profile: Profile) -> Self {
        Self { fix: Some(Fix::Tuning(profile)), ..self }
    }
}
