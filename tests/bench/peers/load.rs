//! A load of packets at any rate from one core, out of any device of any namespace, and what of it arrives: see
//! `load.bpf.c`, which is compiled when it is needed.

use std::mem::offset_of;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use libbpf_rs::{
    MapCore, MapFlags, MapHandle, Object, ObjectBuilder, ProgramInput, ProgramMut, TC_INGRESS, TcHookBuilder,
};
use signal_hook::SigId;

use super::machine::as_f64;
use crate::harness::{EndOnDrop, Netns, on_core};

/// UDP destination port of what is counted.
pub const PORT: u16 = 7021;

/// `BPF_F_TEST_XDP_LIVE_FRAMES`
const LIVE_FRAMES: u32 = 1 << 1;

/// Bytes that a packet begins with; zeros follow.
const HEAD: usize = 96;

/// Frames of one call: more than any trial takes.
const ENDLESS: u32 = i32::MAX as u32;

/// How long packets may be under way.
const UNDER_WAY: Duration = Duration::from_millis(100);

/// A packet, and the number of the device that it leaves by.
pub struct Packet {
    pub device: u32,
    pub bytes: Vec<u8>,
}

/// As `struct pace` has it.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Pace {
    interval: u64,
    due: u64,
    sent: u64,
    next: u32,
    packets: u32,
}

/// What became of packets that were sent.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    pub seconds: f64,
    pub sent: u64,
    pub arrived: u64,
}

impl Trial {
    pub fn offered_mpps(self) -> f64 {
        as_f64(self.sent) / self.seconds / 1e6
    }

    pub fn arrived_mpps(self) -> f64 {
        as_f64(self.arrived) / self.seconds / 1e6
    }

    pub fn lost(self) -> u64 {
        self.sent.saturating_sub(self.arrived)
    }
}

pub struct Load {
    object: Object,
    /// Of the longest packet.
    frame: Vec<u8>,
    stop: Arc<AtomicBool>,
    handler: SigId,
}

impl Drop for Load {
    fn drop(&mut self) {
        signal_hook::low_level::unregister(self.handler);
    }
}

impl Load {
    /// Compiles and loads the programs, by way of files in `dir`.
    pub fn new(dir: &Path) -> Result<Self, String> {
        let [source, object] = ["load.bpf.c", "load.bpf.o"].map(|name| dir.join(name));
        fs::write(&source, include_str!("load.bpf.c")).map_err(|e| format!("{}: {e}", source.display()))?;
        let flags = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-I/usr/include/x86_64-linux-gnu", "-c"];
        let clang = Command::new("clang").args(flags).arg(&source).arg("-o").arg(&object).output();
        let clang = clang.map_err(|e| format!("clang: {e}"))?;
        if !clang.status.success() {
            return Err(String::from_utf8_lossy(&clang.stderr).into_owned());
        }
        let object = ObjectBuilder::default().open_file(&object).and_then(libbpf_rs::OpenObject::load);
        let object = object.map_err(|e| format!("load.bpf.c: {e}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let handler = signal_hook::flag::register(libc::SIGUSR1, Arc::clone(&stop)).map_err(|e| e.to_string())?;
        Ok(Self { object, frame: Vec::new(), stop, handler })
    }

    /// Lets packets leave by a device, under a number.
    pub fn leave_by(&mut self, number: u32, netns: &Netns, device: &str) -> Result<(), String> {
        let index = ifindex(netns, device);
        let map = MapHandle::try_from(&self.map("devices")).map_err(|e| e.to_string())?;
        // The kernel looks for the device in the caller's namespace.
        let update = || map.update(&number.to_ne_bytes(), &index.to_ne_bytes(), MapFlags::ANY);
        netns.within(update).map_err(|e| format!("{device} in {}: {e}", netns.name()))
    }

    /// Counts and drops what arrives at a device.
    pub fn sink(&mut self, netns: &Netns, device: &str) -> Result<(), String> {
        let index = i32::try_from(ifindex(netns, device)).expect("a small number");
        let program = self.program("count");
        let program = program.as_fd();
        let attach = || {
            let mut hook =
                TcHookBuilder::new(program).ifindex(index).replace(true).handle(1).priority(1).hook(TC_INGRESS);
            hook.create()?;
            hook.attach().map(drop)
        };
        netns.within(attach).map_err(|e| format!("{device} in {}: {e}", netns.name()))
    }

    /// What is sent from now on, one after the other, over and over.
    pub fn packets(&mut self, packets: &[Packet]) -> Result<(), String> {
        let longest = packets.iter().map(|packet| packet.bytes.len()).max().unwrap_or(0).max(HEAD);
        let map = self.map("packets");
        for (index, Packet { device, bytes }) in (0_u32..).zip(packets) {
            let surplus = i32::try_from(longest - bytes.len()).expect("a frame");
            let mut head = bytes.clone();
            head.resize(HEAD, 0);
            let value = [&device.to_ne_bytes()[..], &surplus.to_ne_bytes(), &head].concat();
            map.update(&index.to_ne_bytes(), &value, MapFlags::ANY).map_err(|e| format!("packet {index}: {e}"))?;
        }
        self.frame = vec![0; longest];
        self.set_pace(Pace { packets: u32::try_from(packets.len()).expect("a short list"), ..Pace::default() });
        Ok(())
    }

    /// Sends for `time`, at so many packets a second or as fast as it goes.
    pub fn run(&mut self, rate: Option<f64>, time: Duration) -> Trial {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rates are below 2^40 and positive"
        )]
        let interval = rate.map_or(0, |rate| (1024e9 / rate) as u64);
        self.set_pace(Pace { interval, sent: 0, due: 0, ..self.pace() });
        self.trial(|load| {
            let elapsed = load.generate(time);
            (load.pace().sent, elapsed)
        })
    }

    /// What becomes of what a source sends, which says how much it was, within which time.
    pub fn trial(&mut self, source: impl FnOnce(&mut Self) -> (u64, Duration)) -> Trial {
        let before = self.arrived();
        let (sent, elapsed) = on_core(0, || source(self));
        thread::sleep(UNDER_WAY);
        Trial { seconds: elapsed.as_secs_f64(), sent, arrived: self.arrived() - before }
    }

    /// Runs the program on the calling thread until another thread interrupts it. It spins between packets, so the core is
    /// its own or shared evenly.
    fn generate(&mut self, time: Duration) -> Duration {
        self.stop.store(false, Ordering::Relaxed);
        let (frame, stop) = (self.frame.clone(), Arc::clone(&self.stop));
        let program = self.program("generate");
        // SAFETY: no argument, no failure.
        let generator = unsafe { libc::pthread_self() };
        let ended = AtomicBool::new(false);
        let start = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(time);
                while !ended.load(Ordering::Relaxed) {
                    // SAFETY: the generator waits for this thread, so its id is valid.
                    unsafe { libc::pthread_kill(generator, libc::SIGUSR1) };
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let _ends = EndOnDrop(&ended);
            while !stop.load(Ordering::Relaxed) {
                let input = ProgramInput {
                    data_in: Some(&frame),
                    flags: LIVE_FRAMES,
                    repeat: ENDLESS,
                    ..ProgramInput::default()
                };
                match program.test_run(input) {
                    Err(error) if error.kind() != libbpf_rs::ErrorKind::Interrupted => panic!("live frames: {error}"),
                    _ => {}
                }
            }
            start.elapsed()
        })
    }

    fn arrived(&self) -> u64 {
        let counted = self.map("counted").lookup_percpu(&[0; 4], MapFlags::ANY);
        let counted = counted.expect("the map is ours").unwrap_or_default();
        counted.iter().map(|count| word(count, 0)).sum()
    }

    fn pace(&self) -> Pace {
        let value = self.map("pace").lookup(&[0; 4], MapFlags::ANY).expect("the map is ours").expect("an array");
        let both = word(&value, offset_of!(Pace, next)).to_ne_bytes();
        let [next, packets] = [&both[..4], &both[4..]].map(|half| u32::from_ne_bytes(half.try_into().expect("four")));
        Pace { interval: word(&value, 0), due: word(&value, 8), sent: word(&value, 16), next, packets }
    }

    fn set_pace(&self, pace: Pace) {
        let Pace { interval, due, sent, next, packets } = pace;
        let value = [interval.to_ne_bytes(), due.to_ne_bytes(), sent.to_ne_bytes()].concat();
        let value = [&value[..], &next.to_ne_bytes(), &packets.to_ne_bytes()].concat();
        self.map("pace").update(&[0; 4], &value, MapFlags::ANY).expect("the map is ours");
    }

    fn map(&self, name: &str) -> libbpf_rs::Map<'_> {
        self.object.maps().find(|map| map.name() == name).unwrap_or_else(|| panic!("load.bpf.c has no map {name}"))
    }

    fn program(&mut self, name: &str) -> ProgramMut<'_> {
        let mut programs = self.object.progs_mut();
        programs.find(|program| program.name() == name).unwrap_or_else(|| panic!("load.bpf.c has no program {name}"))
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn ifindex(netns: &Netns, device: &str) -> u32 {
    let index = netns.link(device)["ifindex"].as_u64().expect("an index");
    u32::try_from(index).expect("a small number")
}
