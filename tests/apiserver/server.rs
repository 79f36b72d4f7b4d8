//! What the laboratory promises: nodes get pod ranges of both families, and the server comes back with what it knew.

use std::collections::BTreeSet;

use crate::Site;

#[test]
fn nodes_get_pod_ranges_of_their_own_which_survive_the_server() {
    let Some(mut site) = Site::new() else { return };
    let names = ["node-a", "node-b", "node-c"];
    for name in names {
        site.server.create_node(name);
    }
    let given: Vec<_> = names.iter().map(|name| site.server.pod_cidrs(name)).collect();
    println!("{given:?}");
    assert!(given.iter().all(|cidrs| cidrs.len() == 2 && cidrs[0].ends_with("/24") && cidrs[1].ends_with("/48")));
    assert_eq!(given.iter().flatten().collect::<BTreeSet<_>>().len(), 6, "{given:?}");

    site.server.delete_node("node-c");
    site.server.kill();
    site.server.launch();
    assert_eq!(site.server.pod_cidrs("node-a"), given[0]);
    site.server.create_node("node-d");
    let next = site.server.pod_cidrs("node-d");
    assert!(!given[..2].contains(&next), "{next:?} is taken");
}
