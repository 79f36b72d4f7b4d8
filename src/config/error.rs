use std::fmt;
use std::path::PathBuf;

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// Every fault, in the order of the lines.
    #[error("the configuration has {} fault(s):{}", .0.len(), indented(.0))]
    Invalid(Vec<Problem>),
}

/// One fault of a configuration, or a warning about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key's path, such as `peers[1].underlay`; empty for the file as a whole.
    pub key: String,
    /// The value as it stands in the file; empty when there is none.
    pub value: String,
    pub reason: String,
    /// Counted from 1.
    pub line: Option<usize>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        match (self.key.as_str(), self.value.as_str()) {
            ("", _) => f.write_str(&self.reason),
            (key, "") => write!(f, "{key}: {}", self.reason),
            (key, value) => write!(f, "{key} = {value}: {}", self.reason),
        }
    }
}

fn indented(problems: &[Problem]) -> String {
    problems.iter().fold(String::new(), |text, problem| text + "\n  " + &problem.to_string())
}
