//! Our table of nftables, `inet podwire`, by the `nft` tool: listed, replaced and removed whole. No other table is
//! ever touched. Works on the network namespace of the calling thread, which the tool inherits.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::net::IpAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Value, json};

/// The name of our table.
pub const TABLE: &str = "podwire";
/// Its family, as `nft` and as the kernel (`NFPROTO_INET`) call it.
const FAMILY: &str = "inet";
pub const FAMILY_NUMBER: u8 = 1;

/// How long the tool may take, while the control thread waits for it, and how often it is looked whether it has ended.
const LIMIT: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(2);

/// Why the table could not be listed or changed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error(
        "there is no program `nft`: nothing is masqueraded, and the kernel path lets forged sources and strangers' tunnels pass; install the package nftables"
    )]
    NoTool,
    #[error("cannot {act} the nftables table {FAMILY} {TABLE}: {text}")]
    Failed { act: &'static str, text: String },
}

/// The objects of our table (`libnftables-json(5)`) without what the kernel adds, or `None` when there is no table.
pub fn list() -> Result<Option<Vec<Value>>, NftError> {
    let ran = nft("list", &["list", "table", FAMILY, TABLE], "")?;
    if !ran.succeeded && ran.errors.contains("No such file or directory") {
        return Ok(None);
    }
    let text = ran.output("list")?;
    let document: Value = serde_json::from_str(&text).map_err(|error| failed("read", error.to_string()))?;
    let objects = document["nftables"].as_array().cloned().unwrap_or_default();
    Ok(Some(objects.into_iter().filter(|object| object.get("metainfo").is_none()).map(plain).collect()))
}

/// Puts `objects`, which [`table`] begins, in the place of the table's contents, in one transaction.
pub fn replace(objects: &[Value]) -> Result<(), NftError> {
    // To delete what is not there is an error: it is added first.
    let clear = [json!({ "add": table() }), json!({ "delete": table() })];
    let commands: Vec<Value> = clear.into_iter().chain(objects.iter().map(|object| json!({ "add": object }))).collect();
    apply("set", &commands)
}

/// Turns the sets of `old`, which are in place, into those of `new` by their elements, in one transaction.
pub fn change_sets(old: &[Value], new: &[Value]) -> Result<(), NftError> {
    let changes = |act: &'static str, from: &[Value], to: &[Value]| -> Vec<Value> {
        let pairs = from.iter().zip(to).map(|(from, to)| (&from["set"], elements(from), elements(to)));
        let changed = pairs.filter_map(|(set, from, to)| {
            let to: HashSet<&Value> = to.iter().collect();
            let elements: Vec<&Value> = from.iter().filter(|element| !to.contains(element)).collect();
            let change = json!({ "name": set["name"], "elem": elements });
            (!elements.is_empty()).then(|| json!({ act: object("element", change) }))
        });
        changed.collect()
    };
    let commands = [changes("delete", old, new), changes("add", new, old)].concat();
    if commands.is_empty() { Ok(()) } else { apply("change", &commands) }
}

/// The elements of a set; nothing else has any.
fn elements(object: &Value) -> &[Value] {
    object["set"]["elem"].as_array().map_or(&[], Vec::as_slice)
}

/// Whether two lists of objects differ, if at all, in elements of sets only.
pub fn differ_in_elements(one: &[Value], other: &[Value]) -> bool {
    let is_alike = |one: &Value, other: &Value| match (one.get("set"), other.get("set")) {
        (Some(one), Some(other)) => ["name", "type", "flags"].iter().all(|key| one.get(key) == other.get(key)),
        _ => one == other,
    };
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_alike(one, other))
}

/// Removes our table, which must be there.
pub fn delete() -> Result<(), NftError> {
    apply("delete", &[json!({ "delete": table() })])
}

/// The table itself.
pub fn table() -> Value {
    json!({ "table": { "family": FAMILY, "name": TABLE } })
}

/// An object in our table, of `kind`, with more `properties`.
pub fn object(kind: &str, mut properties: Value) -> Value {
    properties["family"] = FAMILY.into();
    properties["table"] = TABLE.into();
    json!({ kind: properties })
}

/// A set of the `ranges` of one family.
pub fn set(name: &str, is_ipv6: bool, ranges: &[IpNet]) -> Value {
    let ranges: Vec<IpNet> = ranges.iter().filter(|range| range.addr().is_ipv6() == is_ipv6).copied().collect();
    // A set of intervals takes none that overlap.
    let mut elements: Vec<Value> = IpNet::aggregate(&ranges).into_iter().map(range).collect();
    elements.sort_by_cached_key(Value::to_string);
    let kind = if is_ipv6 { "ipv6_addr" } else { "ipv4_addr" };
    let mut set = json!({ "name": name, "type": kind, "flags": ["interval"] });
    if !elements.is_empty() {
        set["elem"] = elements.into();
    }
    object("set", set)
}

/// A range of addresses, in a set or a match.
pub fn range(range: IpNet) -> Value {
    let address: IpAddr = range.network();
    match range.prefix_len() {
        len if len == range.max_prefix_len() => address.to_string().into(),
        len => json!({ "prefix": { "addr": address, "len": len } }),
    }
}

/// The match of a rule.
pub fn matches(op: &str, left: &Value, right: &Value) -> Value {
    json!({ "match": { "op": op, "left": left, "right": right } })
}

fn apply(act: &'static str, commands: &[Value]) -> Result<(), NftError> {
    let document = json!({ "nftables": commands }).to_string();
    nft(act, &["-f", "-"], &document)?.output(act).map(drop)
}

/// What the tool said, and whether it did what it was asked.
#[derive(Debug)]
struct Ran {
    succeeded: bool,
    output: String,
    errors: String,
}

impl Ran {
    fn output(self, act: &'static str) -> Result<String, NftError> {
        if self.succeeded { Ok(self.output) } else { Err(failed(act, self.errors.trim().replace('\n', " "))) }
    }
}

fn nft(act: &'static str, arguments: &[&str], input: &str) -> Result<Ran, NftError> {
    let mut command = Command::new("nft");
    command.arg("-j").args(arguments);
    run(command, input, LIMIT).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => NftError::NoTool,
        _ => failed(act, error.to_string()),
    })
}

/// Runs a command to its end, or for `limit` and then kills it. It talks to files: nobody has to read along.
fn run(mut command: Command, input: &str, limit: Duration) -> io::Result<Ran> {
    let [mut stdin, mut stdout, mut stderr] = [memory_file()?, memory_file()?, memory_file()?];
    stdin.write_all(input.as_bytes())?;
    stdin.rewind()?;
    let mut child = command.stdin(stdin).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?).spawn()?;
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            // It ends when it leaves the kernel, which may be much later.
            thread::spawn(move || child.wait());
            let text = format!("{} took longer than {} s", command.get_program().display(), limit.as_secs_f32());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        thread::sleep(TICK);
    };
    Ok(Ran { succeeded: status.success(), output: contents(&mut stdout)?, errors: contents(&mut stderr)? })
}

fn memory_file() -> io::Result<File> {
    Ok(memfd_create("nft", MemfdFlags::CLOEXEC)?.into())
}

fn contents(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// An object without its handle and what counters have counted, its elements in order, and flags always in a list:
/// releases of `nft` differ.
fn plain(mut object: Value) -> Value {
    match &mut object {
        Value::Object(members) => {
            members.remove("handle");
            for (key, value) in members.iter_mut() {
                *value = plain(value.take());
                match (key.as_str(), &mut *value) {
                    ("counter", _) => *value = Value::Null,
                    ("flags", Value::String(_)) => *value = json!([value]),
                    ("elem", Value::Array(elements)) => elements.sort_by_cached_key(Value::to_string),
                    _ => {}
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = plain(item.take())),
        _ => {}
    }
    object
}

fn failed(act: &'static str, text: String) -> NftError {
    NftError::Failed { act, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_are_compared_without_what_differs_between_kernels_and_releases() {
        let listed = json!({ "set": {
            "name": "a", "handle": 7, "flags": "interval",
            "elem": ["192.168.1.3", { "prefix": { "addr": "10.0.0.0", "len": 8 } }],
        } });
        let asked = json!({ "set": {
            "name": "a", "flags": ["interval"],
            "elem": [{ "prefix": { "addr": "10.0.0.0", "len": 8 } }, "192.168.1.3"],
        } });
        assert_eq!(plain(listed), plain(asked.clone()));
        let mut other = asked.clone();
        other["set"]["elem"] = json!(["192.168.1.3"]);
        assert_ne!(plain(asked), plain(other));
    }

    #[test]
    fn a_tool_that_hangs_is_killed() {
        let mut hangs = Command::new("sh");
        hangs.args(["-c", "exec sleep 600"]);
        let begin = Instant::now();
        let error = run(hangs, "", Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.to_string(), "sh took longer than 0.05 s");
        assert!(begin.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn a_tool_gets_its_input_and_is_heard_whatever_it_says() {
        let mut talks = Command::new("sh");
        talks.args(["-c", "cat; yes | head -c 1000000; echo wrong >&2; exit 3"]);
        let ran = run(talks, "input\n", LIMIT).unwrap();
        assert!(ran.output.starts_with("input\ny\n") && ran.output.len() == 1_000_006);
        assert_eq!(ran.output("set").unwrap_err().to_string(), "cannot set the nftables table inet podwire: wrong");
    }

    #[test]
    fn no_range_of_a_set_overlaps_another_and_hosts_are_plain_addresses() {
        let ranges = ["10.244.2.0/24", "10.244.0.0/16", "192.168.1.3/32", "fd00::/64", "10.245.0.0/16"];
        let ranges = ranges.map(|range| range.parse().unwrap());
        let four = set("kept4", false, &ranges);
        let expected = json!(["192.168.1.3", { "prefix": { "addr": "10.244.0.0", "len": 15 } }]);
        assert_eq!(four["set"]["elem"], expected);
        assert_eq!(set("kept6", true, &[])["set"].get("elem"), None);
    }

    #[test]
    fn objects_that_differ_in_elements_only_are_told_from_others() {
        let table = |ranges: &[&str], rule: &str| {
            let ranges: Vec<IpNet> = ranges.iter().map(|range| range.parse().unwrap()).collect();
            vec![set("kept4", false, &ranges), object("rule", json!({ "expr": rule }))]
        };
        let one = table(&["192.168.1.3/32"], "a");
        assert!(differ_in_elements(&one, &table(&["192.168.1.4/32"], "a")));
        assert!(differ_in_elements(&one, &table(&[], "a")));
        assert!(!differ_in_elements(&one, &table(&["192.168.1.3/32"], "b")));
        assert!(!differ_in_elements(&one, &one[..1]));
        assert!(!differ_in_elements(&one, &[set("kept6", true, &[]), one[1].clone()]));
    }
}
