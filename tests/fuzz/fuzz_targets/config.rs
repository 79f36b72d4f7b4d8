//! The configuration file: any text is refused with problems that name their places, or is a configuration that the same
//! document in another layout gives too, that pods can get addresses of, and that makes a table.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podwire::config::{Config, ConfigError};
use podwire::control::fuzz;
use podwire::fib::{Fib, NextHop};

fuzz_target!(|text: &str| {
    let config = match Config::parse(text) {
        Ok(config) => config,
        Err(ConfigError::Invalid(problems)) => {
            assert!(!problems.is_empty());
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let document: toml::Table = text.parse().expect("TOML");
    let again = Config::parse(&document.to_string()).unwrap_or_else(|error| panic!("{error}\n{document}"));
    // Warnings name lines.
    let plain = |config: Config| Config { warnings: Vec::new(), ..config };
    assert_eq!(plain(again), plain(config.clone()), "{document}");
    fuzz::ipam(&config);
    let routes: Vec<_> =
        config.peers.iter().flat_map(|peer| peer.prefixes()).map(|prefix| (prefix, NextHop::Blackhole)).collect();
    let count = routes.len();
    assert_eq!(Fib::build(routes).len(), count, "the prefixes of two peers are the same");
});
