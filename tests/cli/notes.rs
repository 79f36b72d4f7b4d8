//! Notes that a CNI plugin leaves when no daemon answers it.

use std::fs;

use podwire::control::notes;

use crate::harness::is_root;
use crate::node::Node;
use crate::texts;

fn names(node: &Node) -> Vec<String> {
    texts(&node.json(&["pods", "list"]), Some("name")).into_iter().map(str::to_owned).collect()
}

#[test]
fn a_note_left_while_no_daemon_ran_is_heeded_before_anyone_is_answered() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    node.attach("db");
    node.stop("KILL");
    for name in ["web", "never/attached"] {
        notes::leave(&node.runtime_dir(), name).unwrap();
    }
    node.run();
    assert_eq!(names(&node), ["db"]);
    assert!(!node.inside("ip -br link").contains("pw1"), "{}", node.log());
    assert_eq!(fs::read_dir(notes::dir(&node.runtime_dir())).unwrap().count(), 0);
}

#[test]
fn a_note_that_overtakes_the_start_of_the_daemon_is_heeded_and_other_files_are_left_alone() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    node.attach("db");
    let odd = notes::dir(&node.runtime_dir()).join("not a note");
    fs::write(&odd, "x").unwrap();
    notes::leave(&node.runtime_dir(), "web").unwrap();
    node.wait_for("the pod to be detached", |node| names(node) == ["db"]);
    node.wait_for("the log", |node| node.log().contains("not a note are no notes"));
    assert!(odd.exists() && fs::read_dir(notes::dir(&node.runtime_dir())).unwrap().count() == 1);
}

#[test]
fn a_pod_attached_after_a_note_about_its_name_stays() {
    if !is_root() {
        return;
    }
    let mut node = Node::start();
    node.attach("web");
    node.signal("STOP");
    notes::leave(&node.runtime_dir(), "web").unwrap();
    let path = node.pod_netns("web-2");
    let dir = node.runtime_dir();
    let args = ["pods", "attach", "--netns", &path, "--name", "web", "--runtime-dir", dir.to_str().unwrap()];
    let again = std::process::Command::new(crate::BINARY).args(args).spawn().unwrap();
    node.signal("CONT");
    let output = again.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", node.log());
    assert_eq!(names(&node), ["web"]);
    assert!(node.json(&["pods", "list"])[0]["netns"].as_str().unwrap().ends_with("web-2"));
}
