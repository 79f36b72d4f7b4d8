//! A scrape: HTTP by hand, and the text format as far as it is used.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::harness::{Netns, PodwireNode};

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Sends `request` on a new connection and reads all that comes.
pub fn talk(stream: &mut (impl Read + Write), request: &str) -> io::Result<Answer> {
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// Asks a server in a namespace, by HTTP/1.0: an answer is not chunked.
pub fn try_get(netns: &Netns, at: SocketAddr, path: &str) -> io::Result<Answer> {
    let mut stream = netns.within(|| TcpStream::connect(at))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    talk(&mut stream, &format!("GET {path} HTTP/1.0\r\nHost: {at}\r\n\r\n"))
}

/// As [`try_get`], of a server that must answer.
#[track_caller]
pub fn get(netns: &Netns, at: SocketAddr, path: &str) -> Answer {
    try_get(netns, at, path).unwrap_or_else(|error| panic!("{path} of {at}: {error}"))
}

pub fn metrics_address() -> SocketAddr {
    PodwireNode::METRICS.parse().expect("an address")
}

/// The samples of one scrape.
#[derive(Debug)]
pub struct Exposition {
    pub at: Instant,
    pub text: String,
    samples: BTreeMap<String, f64>,
}

impl Exposition {
    /// Scrapes a node, which must answer.
    #[track_caller]
    pub fn of(node: &PodwireNode) -> Self {
        let answer = get(&node.host.netns, metrics_address(), "/metrics");
        assert_eq!(answer.status, 200, "{}", answer.body);
        Self::parse(answer.body)
    }

    fn parse(text: String) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
            (series.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
        });
        Self { at: Instant::now(), samples: samples.collect(), text }
    }

    /// The names of all metrics that have a type.
    pub fn names(&self) -> BTreeSet<&str> {
        let types = self.text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        types.filter_map(|line| line.split(' ').next()).collect()
    }

    /// The sum over the series of a metric that have all of the labels; none when there is no such series.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let has = |series: &str| {
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            found == name && wanted.iter().all(|pair| rest.contains(pair))
        };
        self.samples.iter().filter(|(series, _)| has(series)).map(|(_, value)| *value).reduce(|sum, value| sum + value)
    }
}
