use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::cli::top::scene::{Cause, DeviceRow, PeerRow, PodRow, QueueRow, Rates, WorkerRow};
use crate::control::api::{DataplaneState, Path, Probe, ProbeState};

fn rates(rx_pps: f64, tx_pps: f64) -> Rates {
    Rates { rx_pps, rx_bps: rx_pps * 800.0, tx_pps, tx_bps: tx_pps * 800.0, lost_pps: 0.0 }
}

fn worker(worker: u16, load: f64) -> WorkerRow {
    let rate = 1000.0 * f64::from(worker + 1);
    WorkerRow {
        worker,
        core: usize::from(worker) + 1,
        load,
        wire_rx_pps: rate,
        wire_tx_pps: 2.0 * rate,
        pod_rx_pps: 2.0 * rate,
        pod_tx_pps: rate,
        burst: (worker == 0).then_some(3.25),
        asleep: worker > 0,
        fresh: true,
        probation: None,
    }
}

fn pod(name: &str, fast: Option<Rates>, reason: Option<&str>) -> PodRow {
    PodRow {
        name: name.to_owned(),
        workload: None,
        addresses: vec!["10.244.1.7".to_owned()],
        path: if reason.is_none() { Path::Fast } else { Path::Kernel },
        reason: reason.map(str::to_owned),
        fast,
    }
}

fn reason(by: &str, reason: &str, pps: f64, total: u64) -> Cause {
    Cause { by: by.to_owned(), reason: reason.to_owned(), help: format!("the meaning of {reason}"), pps, total }
}

fn scene() -> Scene {
    let shaped = "it is limited by the qdisc tbf of somebody else";
    Scene {
        node: "node-a".to_owned(),
        version: "0.1.0".to_owned(),
        uptime_secs: 3_660,
        mode: "adaptive".to_owned(),
        state: DataplaneState::Running,
        reason: None,
        interval_secs: 1.0,
        fast: rates(1_230_000.0, 456_000.0),
        kernel: rates(7.5, 0.0),
        dropped_pps: 12.0,
        workers: vec![worker(0, 0.42), worker(1, 0.0)],
        queues: vec![QueueRow { queue: 0, worker: 0, zero_copy: false, rates: rates(1000.0, 2000.0) }],
        devices: vec![DeviceRow { device: "podwire.1".to_owned(), rates: rates(7.5, 0.0) }],
        pods: vec![
            pod("idle", Some(rates(0.0, 0.0)), None),
            pod("web", Some(rates(900.0, 100.0)), None),
            pod("slow", None, Some(shaped)),
        ],
        peers: vec![PeerRow {
            name: "node-b".to_owned(),
            underlay: "192.168.1.3".to_owned(),
            ways: "vxlan".to_owned(),
            path: Path::Fast,
            reason: None,
            probe: Some(Probe {
                address: "10.244.2.0".parse().unwrap(),
                state: ProbeState::Answers,
                rtt_ns: Some(200_000),
                smoothed_rtt_ns: Some(123_456),
                sent: 12,
                lost: 1,
                recent: 10,
                recent_lost: 1,
                answered_ms_ago: Some(900),
                diagnosis: None,
            }),
        }],
        drops: vec![reason("worker", "no_pod", 12.0, 34), reason("pod_steer", "spoof_ip", 0.0, 5)],
        left_to_kernel: vec![reason("nic_steer", "nated", 7.5, 99)],
        problems: Vec::new(),
    }
}

fn screen() -> Screen {
    Screen { scene: Some(scene()), ..Screen::default() }
}

/// What is on a screen of that size, without the blanks at the ends of lines.
fn drawn(screen: &mut Screen, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned() + "\n";
    (0..height).map(line).collect()
}

fn press(screen: &mut Screen, code: KeyCode) -> Wish {
    screen.press(KeyEvent::new(code, KeyModifiers::NONE))
}

/// The lines of the chosen table.
fn body(screen: &mut Screen) -> Vec<String> {
    drawn(screen, 80, 24).lines().skip(5).take_while(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn a_screen_of_80_by_24_shows_everything_at_once() {
    assert_eq!(
        drawn(&mut screen(), 80, 24),
        "\
node-a: adaptive, running, up 1h01m, podwire 0.1.0
fast   in 1.23M  984Mb out  456k  365Mb
kernel in   7.5 6.00kb out     0     0b  dropped 12/s

[all]  workers   uplink   pods   peers   drops   kernel
WORKER  LOAD  WIRE IN  WIRE OUT  FROM PODS  TO PODS  BURST  CORE  STATE
     0   42%    1.00k     2.00k      2.00k    1.00k    3.2  1     awake
+1 more
UPLINK        IN    OUT  IN BIT/S  OUT BIT/S  LOST  BY
queue 0    1.00k  2.00k      800k      1.60M     0  worker 0, copy
+1 more
POD   SENDS  GETS  LOST  PATH    SENDS BIT/S  GETS BIT/S  ADDRESS
web     900   100     0  fast           720k       80.0k  10.244.1.7
+2 more
PEER    PATH  WAY    PROBES        RTT  LOSS     UNDERLAY     WHY
node-b  fast  vxlan  answers  0.123 ms  1 of 10  192.168.1.3

DROPPED   PER S  TOTAL  BY         MEANING
no_pod       12     34  worker     the meaning of no_pod
+1 more
LEFT TO KERNEL  PER S  TOTAL  BY         MEANING
nated             7.5     99  nic_steer  the meaning of nated

q quit ←→ view ↑↓ row s sort r reverse
"
    );
}

#[test]
fn a_screen_of_40_by_10_shows_one_table_and_how_to_turn_to_the_others() {
    let mut screen = screen();
    assert_eq!(
        drawn(&mut screen, 40, 10),
        "\
node-a: adaptive, running, up 1h01m, pod
fast   in 1.23M  984Mb out  456k  365Mb
kernel in   7.5 6.00kb out     0     0b

‹[all]› 1 of 7
WORKER  LOAD  WIRE IN  WIRE OUT
     0   42%    1.00k     2.00k
     1    0%    2.00k     4.00k

q quit ←→ view ↑↓ row s sort r reverse
"
    );
    (0..5).for_each(|_| _ = press(&mut screen, KeyCode::Tab));
    assert_eq!(
        drawn(&mut screen, 40, 10),
        "\
node-a: adaptive, running, up 1h01m, pod
fast   in 1.23M  984Mb out  456k  365Mb
kernel in   7.5 6.00kb out     0     0b

‹[drops]› 6 of 7
DROPPED   PER S  TOTAL  BY
no_pod       12     34  worker
spoof_ip      0      5  pod_steer

q quit ←→ view ↑↓ row s sort r reverse
"
    );
}

#[test]
fn no_size_of_the_screen_is_too_small_or_too_large() {
    for size in [(1, 1), (3, 2), (10, 5), (39, 9), (80, 3), (200, 60)] {
        let mut screen = screen();
        (0..8).for_each(|_| {
            let lines = drawn(&mut screen, size.0, size.1);
            assert_eq!(lines.lines().count(), usize::from(size.1));
            press(&mut screen, KeyCode::Right);
        });
    }
}

#[test]
fn views_come_round_both_ways_and_rows_are_kept_on_the_table() {
    let mut screen = screen();
    press(&mut screen, KeyCode::Left);
    assert!(body(&mut screen)[0].starts_with("LEFT TO KERNEL"));
    press(&mut screen, KeyCode::Right);
    press(&mut screen, KeyCode::Right);
    assert!(body(&mut screen)[0].starts_with("WORKER"));
    (0..9).for_each(|_| _ = press(&mut screen, KeyCode::Down));
    body(&mut screen);
    assert_eq!(screen.row, 1);
    assert_eq!(press(&mut screen, KeyCode::Char('x')), Wish::Stay);
    assert_eq!(press(&mut screen, KeyCode::Char('q')), Wish::Quit);
    assert_eq!(screen.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Wish::Quit);
}

#[test]
fn pods_are_sorted_by_load_or_by_the_column_that_the_user_chooses() {
    let mut screen = screen();
    (0..3).for_each(|_| _ = press(&mut screen, KeyCode::Tab));
    let names = |screen: &mut Screen| -> Vec<_> {
        body(screen).iter().skip(1).map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&mut screen), ["web", "idle", "slow"]);
    press(&mut screen, KeyCode::Char('s'));
    assert_eq!(names(&mut screen), ["idle", "slow", "web"]);
    assert!(body(&mut screen)[0].starts_with("POD*"));
    press(&mut screen, KeyCode::Char('r'));
    assert_eq!(names(&mut screen), ["web", "slow", "idle"]);
    press(&mut screen, KeyCode::Char('s'));
    assert_eq!(names(&mut screen), ["slow", "idle", "web"], "by what they send, the least first");
}

#[test]
fn the_selected_row_is_explained() {
    let mut screen = screen();
    (0..5).for_each(|_| _ = press(&mut screen, KeyCode::Tab));
    assert!(drawn(&mut screen, 80, 24).contains("no_pod (worker): the meaning of no_pod"));
    press(&mut screen, KeyCode::Down);
    assert!(drawn(&mut screen, 80, 24).contains("spoof_ip (pod_steer): the meaning of spoof_ip"));
}

#[test]
fn a_daemon_that_is_away_is_told_of_and_its_figures_stay() {
    let mut screen = screen();
    screen.say(Some("no daemon for 3 s".to_owned()));
    let shown = drawn(&mut screen, 80, 24);
    assert!(shown.contains("no daemon for 3 s") && shown.contains("1.23M"), "{shown}");
    screen.say(None);
    assert!(!drawn(&mut screen, 80, 24).contains("no daemon"));
    let mut unread = Screen::default();
    assert!(drawn(&mut unread, 80, 24).contains("waiting for the daemon"));
}

#[test]
fn lines_are_dealt_by_turns_and_never_more_than_there_are() {
    assert_eq!(heights(&[4, 3, 9], 30), [4, 3, 9]);
    assert_eq!(heights(&[9, 3, 9], 12), [5, 3, 4]);
    assert_eq!(heights(&[9, 9, 9], 5), [3, 2, 0]);
    assert_eq!(heights(&[9, 9], 1), [0, 0]);
    assert_eq!(heights(&[], 9), [0; 0]);
}
