//! Plan.
/// A change of kernel state; Display for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change(String);
impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
