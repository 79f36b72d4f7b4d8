//! Our own rules in nftables, the table `inet podwire`: a [`guard`] always, and [`masquerade`] where it is wanted.
//!
//! What is right is not touched, so that a reconciliation changes nothing, and what differs is replaced in one
//! transaction.

use serde_json::Value;

use super::netlink::{BaseChain, Netfilter};
use super::nft::{self, NftError};
use super::{guard, masquerade};
use crate::config::Config;

/// The rules of one node.
#[derive(Debug, Default)]
pub struct Ruleset {
    /// What was asked for last, and how `nft` lists it since it was put in place.
    asked: Vec<Value>,
    listed: Option<Vec<Value>>,
    /// How `nft` listed it right after it was last put in place.
    words: Option<Vec<Value>>,
    problem: Option<NftError>,
}

impl Ruleset {
    /// Brings our table to what `config` wants. `nft` runs only if that has changed, or if `is_touched` says that the
    /// table may have.
    pub fn ensure(&mut self, config: &Config, is_touched: bool) {
        let wanted = rules(config);
        let same = wanted == self.asked;
        if same && !is_touched {
            return;
        }
        if !same {
            let old = std::mem::replace(&mut self.asked, wanted);
            (self.listed, self.words) = (None, None);
            // What others have changed meanwhile is found by the next look.
            let is_small = self.problem.is_none() && !is_touched && nft::differ_in_elements(&old, &self.asked);
            if is_small && nft::change_sets(&old, &self.asked).is_ok() {
                return;
            }
        }
        let result = self.put();
        if let Err(error) = &result
            && self.problem.as_ref().is_none_or(|known| known.to_string() != error.to_string())
        {
            // Without masquerading the rules are one guard of two.
            if config.cluster.masquerade {
                tracing::error!("{error}");
            } else {
                tracing::warn!("{error}");
            }
        }
        self.problem = result.err();
    }

    /// Why what is wanted is not in place.
    pub fn problem(&self) -> Option<&NftError> {
        self.problem.as_ref()
    }

    /// Whether what is wanted was in place when it was last looked at.
    pub fn is_in_place(&self) -> bool {
        !self.asked.is_empty() && self.problem.is_none()
    }

    fn put(&mut self) -> Result<(), NftError> {
        let listed = nft::list()?;
        if listed.as_ref() == Some(&self.asked) || listed.is_some() && listed == self.listed {
            return Ok(());
        }
        nft::replace(&self.asked)?;
        tracing::info!("the nftables rules were set");
        // Where this nft says it in other words, these are the words from now on; heard twice, since someone may have
        // changed the table again before it was listed.
        let words = nft::list()?;
        if words == self.words {
            self.listed = words;
        } else {
            self.words = words;
        }
        Ok(())
    }
}

/// Removes our table from the network namespace of the calling thread; false when there was none.
pub fn remove() -> Result<bool, NftError> {
    let chains = Netfilter::open().and_then(|socket| socket.map_or(Ok(Vec::new()), |mut socket| socket.base_chains()));
    // Without an answer nft is asked.
    if chains.is_ok_and(|chains| !chains.iter().any(is_ours)) || nft::list()?.is_none() {
        return Ok(false);
    }
    nft::delete()?;
    Ok(true)
}

/// Whether a chain is of our table.
pub fn is_ours(chain: &BaseChain) -> bool {
    chain.family == nft::FAMILY_NUMBER && chain.table == nft::TABLE
}

/// Our table for `config`, in the order and words of a listing: sets, chains, rules.
fn rules(config: &Config) -> Vec<Value> {
    let masquerade = if config.cluster.masquerade { masquerade::objects(config) } else { Vec::new() };
    let mut objects: Vec<Value> = [nft::table()].into_iter().chain(guard::objects(config)).chain(masquerade).collect();
    let order = |object: &Value| ["table", "set", "chain", "rule"].iter().position(|kind| object.get(kind).is_some());
    objects.sort_by_key(order);
    objects
}
