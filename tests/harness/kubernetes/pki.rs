//! The certificates of a cluster, made for one laboratory.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};

/// An authority, whose certificates and keys are files of one directory: `NAME.crt` and `NAME.key`.
pub struct Pki {
    dir: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    /// A new authority, `ca.crt`.
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("a directory for certificates");
        let mut params = params("podwire laboratory", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, key()).expect("a certificate");
        let pki = Self { dir: dir.to_owned(), authority };
        pki.write("ca.crt", &pki.authority.pem());
        pki
    }

    /// A certificate of a server, by which its clients reach it at these addresses.
    pub fn server(&self, name: &str, addresses: &[IpAddr]) {
        let mut params = params(name, None);
        params.subject_alt_names = addresses.iter().copied().map(SanType::IpAddress).collect();
        self.issue(name, &params);
    }

    /// A certificate that makes its bearer a user of a group (Kubernetes: CN and O).
    pub fn client(&self, user: &str, group: Option<&str>) {
        self.issue(user, &params(user, group));
    }

    /// A pair of keys without a certificate: `NAME.key` and `NAME.pub`.
    pub fn keys(&self, name: &str) {
        let key = key();
        self.write(&format!("{name}.key"), &key.serialize_pem());
        self.write(&format!("{name}.pub"), &key.public_key_pem());
    }

    /// Where one of the files is.
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    fn issue(&self, name: &str, params: &CertificateParams) {
        let key = key();
        let certificate = params.signed_by(&key, &self.authority).expect("a certificate");
        self.write(&format!("{name}.crt"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.path(file), text).expect("a file is written");
    }
}

fn key() -> KeyPair {
    KeyPair::generate().expect("a pair of keys")
}

fn params(name: &str, organization: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params
}
