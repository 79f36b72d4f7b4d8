//! Our table of nftables, `inet podwire`, by the `nft` tool: listed, replaced and removed whole. No other table is
//! ever touched. Works on the network namespace of the calling thread, which the tool inherits.

use std::io;

use nftables::helper::{DEFAULT_ARGS, DEFAULT_NFT, NftablesError, apply_ruleset_raw, get_current_ruleset_raw};
use serde_json::{Value, json};

/// The name of our table.
pub const TABLE: &str = "podwire";
/// Its family, as `nft` and as the kernel (`NFPROTO_INET`) call it.
const FAMILY: &str = "inet";
pub const FAMILY_NUMBER: u8 = 1;

/// Why the table could not be listed or changed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("there is no program `nft`, which cluster.masquerade = true needs: install the package nftables")]
    NoTool,
    #[error("cannot {act} the nftables table {FAMILY} {TABLE}: {text}")]
    Failed { act: &'static str, text: String },
}

/// The objects of our table (`libnftables-json(5)`) without what the kernel adds, or `None` when there is no table.
pub fn list() -> Result<Option<Vec<Value>>, NftError> {
    match get_current_ruleset_raw(DEFAULT_NFT, ["list", "table", FAMILY, TABLE]) {
        Ok(text) => {
            let document: Value = serde_json::from_str(&text).map_err(|error| failed("read", error.to_string()))?;
            let objects = document["nftables"].as_array().cloned().unwrap_or_default();
            Ok(Some(objects.into_iter().filter(|object| object.get("metainfo").is_none()).map(plain).collect()))
        }
        Err(NftablesError::NftFailed { stderr, .. }) if stderr.contains("No such file or directory") => Ok(None),
        Err(error) => Err(explain("list", error)),
    }
}

/// Puts `objects`, which [`table`] begins, in the place of the table's contents, in one transaction.
pub fn replace(objects: &[Value]) -> Result<(), NftError> {
    // To delete what is not there is an error: it is added first.
    let clear = [json!({ "add": table() }), json!({ "delete": table() })];
    let commands: Vec<Value> = clear.into_iter().chain(objects.iter().map(|object| json!({ "add": object }))).collect();
    apply("set", &commands)
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

fn apply(act: &'static str, commands: &[Value]) -> Result<(), NftError> {
    let document = json!({ "nftables": commands }).to_string();
    apply_ruleset_raw(&document, DEFAULT_NFT, DEFAULT_ARGS).map(drop).map_err(|error| explain(act, error))
}

/// An object without its handle, its elements in order, and flags always in a list: releases of `nft` differ.
fn plain(mut object: Value) -> Value {
    match &mut object {
        Value::Object(members) => {
            members.remove("handle");
            for (key, value) in members.iter_mut() {
                *value = plain(value.take());
                match (key.as_str(), &mut *value) {
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

fn explain(act: &'static str, error: NftablesError) -> NftError {
    match error {
        NftablesError::NftExecution { inner, .. } if inner.kind() == io::ErrorKind::NotFound => NftError::NoTool,
        NftablesError::NftFailed { stderr, .. } => failed(act, stderr.trim().replace('\n', " ")),
        other => failed(act, other.to_string()),
    }
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
}
