//! What is wrong with a server's certificate is said by name, with the way out.

use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::harness::Netns;
use crate::scene::Scene;

const ADDRESS: &str = "127.0.0.1:6443";

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate")
}

/// A server in a namespace that shakes hands with such a certificate, and hangs up.
fn serve(netns: &Netns, authority: &Authority, params: &CertificateParams) {
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, authority).expect("a certificate");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().expect("versions").with_no_client_auth();
    let config = config.with_single_cert(vec![certificate.der().clone()], key).expect("a certificate and its key");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = netns.within(|| TcpListener::bind(ADDRESS)).expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let _ = acceptor.accept(stream).await;
            }
        });
    });
}

/// A certificate that is good for the server's address.
fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    params
}

/// What the node says of a server with such a certificate, signed by `issuer`, when it trusts `trusted`.
#[track_caller]
fn expect(issuer: &Authority, trusted: &Authority, params: &CertificateParams, said: [&str; 2]) {
    let Some(scene) = Scene::start() else { return };
    serve(&scene.node.host.netns, issuer, params);
    let ca = scene.prefix.dir().join("trusted.crt");
    fs::write(&ca, trusted.pem()).expect("a file is written");
    let config = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: k, cluster: {{server: 'https://{ADDRESS}', \
         certificate-authority: '{}'}}}}]\nusers: [{{name: u, user: {{}}}}]\n\
         contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n",
        ca.display()
    );
    fs::write(scene.node.kubeconfig(), config).expect("a file is written");
    scene.api.cut();
    for said in said {
        scene.expect_problem(said);
    }
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    expect(&authority(), &authority(), &params(), ["certificate is not trusted", "that of this cluster?"]);
}

#[test]
fn a_certificate_that_has_expired_or_is_not_valid_yet_is_refused_and_the_clock_is_named() {
    let authority = authority();
    for (from, until) in [(2001, 2002), (2101, 2102)] {
        let mut params = params();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(until, 1, 1));
        expect(&authority, &authority, &params, ["certificate is not trusted", "this node's clock"]);
    }
}

#[test]
fn a_certificate_for_another_address_is_refused_and_the_addresses_are_named() {
    let authority = authority();
    let mut params = params();
    params.subject_alt_names = vec![SanType::IpAddress([192, 0, 2, 7].into())];
    expect(&authority, &authority, &params, ["certificate is not trusted", "that its certificate has"]);
}
