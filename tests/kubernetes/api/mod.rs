//! A stand-in for the API server: nodes and one ConfigMap by HTTP/1.1, with the semantics of list, watch and patch that
//! clients rely on (<https://kubernetes.io/docs/reference/using-api/api-concepts/>), and faults on demand.
#![allow(dead_code, reason = "each test crate asks for its own part of the semantics")]

mod serve;
mod store;

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use serde_json::Value;
use tokio::sync::{mpsc, watch};

pub use store::Store;

use crate::harness::Netns;

/// Where it listens in each node's namespace.
const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 8001);

/// What has happened since the server began: clients that watch wait for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tick {
    version: u64,
    /// Watches of earlier epochs are cut.
    epoch: u64,
}

/// A running server; ends with the process.
#[derive(Clone)]
pub struct Api {
    store: Arc<Mutex<Store>>,
    tick: Arc<watch::Sender<Tick>>,
    listeners: mpsc::UnboundedSender<TcpListener>,
}

impl Api {
    /// Starts a server with no nodes, and Flannel's configuration in its ConfigMap.
    pub fn start(net_conf: &str) -> Self {
        let (listeners, incoming) = mpsc::unbounded_channel();
        let api = Self {
            store: Arc::new(Mutex::new(Store::new(net_conf))),
            tick: Arc::new(watch::Sender::new(Tick::default())),
            listeners,
        };
        let served = api.clone();
        thread::spawn(move || serve::run(&served, incoming));
        api
    }

    /// Has it listen in a namespace, too.
    pub fn listen_in(&self, netns: &Netns) {
        let listener = netns.within(|| TcpListener::bind(SocketAddr::from(ADDRESS))).expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        self.listeners.send(listener).expect("the server runs");
    }

    /// How to reach it from a namespace in which it listens, with a token in a file if one is named.
    pub fn kubeconfig(token_file: Option<&str>) -> String {
        let (ip, port) = (std::net::Ipv4Addr::from(ADDRESS.0), ADDRESS.1);
        let user = token_file.map_or("{}".to_owned(), |path| format!("{{tokenFile: {path}}}"));
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: k, cluster: {{server: 'http://{ip}:{port}'}}}}]\n\
             users: [{{name: u, user: {user}}}]\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n"
        )
    }

    /// What it knows and does; whoever holds this holds it up.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what it knows, and tells those who watch.
    pub fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        let result = change(&mut store);
        let version = store.version();
        drop(store);
        self.tick.send_modify(|tick| tick.version = version);
        result
    }

    /// Cuts all watches, in the middle of their streams.
    pub fn cut(&self) {
        self.tick.send_modify(|tick| tick.epoch += 1);
    }

    /// Is as good as gone, or is back.
    pub fn set_down(&self, down: bool) {
        self.store().down = down;
        self.cut();
    }

    /// A node as it is now.
    pub fn node(&self, name: &str) -> Value {
        self.store().node(name).cloned().unwrap_or_default()
    }
}
