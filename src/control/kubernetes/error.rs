use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use kube::core::Status;

use super::net_conf::NetConfError;

/// Why the Kubernetes API says nothing now.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("cannot use the kubeconfig {path}: {1}", path = .0.display())]
    Kubeconfig(PathBuf, String),
    #[error("there is no service account of a pod ({0}); outside of a cluster set kubernetes.kubeconfig")]
    NotInCluster(String),
    #[error("cannot speak to the API server: {0}")]
    Client(String),
    #[error("cannot {what}: the API server does not answer: {text}")]
    Away { what: &'static str, text: String },
    #[error("cannot {what}: the API server's certificate is not trusted: {text}{}", remedy(.text))]
    Untrusted { what: &'static str, text: String },
    #[error("cannot {what}: no answer within {} s", .limit.as_secs())]
    Late { what: &'static str, limit: Duration },
    #[error("cannot {what}: the API server refuses ({code}): {text}{}", advice(*.code))]
    Refused { what: &'static str, code: u16, text: String },
    #[error("the list of nodes is no list")]
    NoList,
    #[error("the API server no longer has what has changed since the last event; listing the nodes again")]
    Gone,
    #[error("the watch of nodes ended as soon as it had begun")]
    Closed,
    #[error("nothing was heard of the API server for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("cannot read {path}: {1}", path = .0.display())]
    NetConfFile(PathBuf, #[source] io::Error),
    #[error("the ConfigMap kube-flannel-cfg in {0} has no net-conf.json; set kubernetes.net_conf to a file")]
    NoKey(&'static str),
    #[error("no ConfigMap kube-flannel-cfg in kube-flannel or kube-system ({0}); set kubernetes.net_conf to a file")]
    NoNetConf(String),
    #[error("{0} cannot be followed: {1}")]
    NetConf(String, #[source] NetConfError),
}

impl SourceError {
    /// Whether the server has not spoken, so that it may go on where it was.
    pub fn is_of_the_way(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Untrusted { .. } | Self::Late { .. } | Self::Silent(_) | Self::Closed)
    }

    /// What an answer, or its lack, means.
    pub fn of_answer(what: &'static str, error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::of_status(what, status),
            other => {
                let text = chain(other);
                match text.find(DISTRUST) {
                    Some(at) => Self::Untrusted { what, text: text[at + DISTRUST.len()..].to_owned() },
                    None => Self::Away { what, text },
                }
            }
        }
    }

    /// What a status that the server has sent means.
    pub fn of_status(what: &'static str, status: &Status) -> Self {
        if status.code == 410 {
            return Self::Gone;
        }
        let text = if status.message.is_empty() { &status.reason } else { &status.message };
        Self::Refused { what, code: status.code, text: text.trim().to_owned() }
    }
}

/// Before what rustls finds wrong with a certificate (`rustls::Error::InvalidCertificate`).
const DISTRUST: &str = "invalid peer certificate: ";

/// What to do about a certificate that is not trusted (`rustls::CertificateError`).
fn remedy(text: &str) -> &'static str {
    const AUTHORITY: &str =
        "; is the certificate-authority in the kubeconfig, or the pod's ca.crt, that of this cluster?";
    let remedies = [
        ("UnknownIssuer", AUTHORITY),
        ("BadSignature", AUTHORITY),
        ("not valid for name", "; reach the server by a name or address that its certificate has"),
        ("expired", "; renew it, or set this node's clock"),
        ("not valid yet", "; set this node's clock, or the server's"),
    ];
    remedies.iter().find(|(said, _)| text.contains(said)).map_or("", |(_, remedy)| remedy)
}

/// What to do about a refusal.
fn advice(code: u16) -> &'static str {
    match code {
        401 => "; are the credentials still valid?",
        403 => "; the account needs nodes: get, list, watch, nodes/status: patch, and configmaps: get",
        _ => "",
    }
}

/// An error with all that caused it, each said once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}
