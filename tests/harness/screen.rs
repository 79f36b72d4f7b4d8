//! A terminal of 80 by 24 for a program, and what the program shows there.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::pty::{Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};

use super::traffic::wait_until;

const PATIENCE: Duration = Duration::from_secs(20);

pub struct Screen {
    child: Child,
    keyboard: File,
    /// The program's end, to see how it is left.
    line: OwnedFd,
    shown: Arc<Mutex<vt100::Parser>>,
}

impl Screen {
    /// Starts a program whose controlling terminal is the new one.
    pub fn start(command: &Command) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("a pseudo-terminal");
        let end = || pty.slave.try_clone().expect("a descriptor");
        let mut started = Command::new("setsid");
        started.arg("--ctty").arg(command.get_program()).args(command.get_args());
        started.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm-256color");
        let child = started.spawn().expect("setsid starts");
        let shown = Arc::new(Mutex::new(vt100::Parser::new(24, 80, 0)));
        let (seen, mut output) = (Arc::clone(&shown), File::from(pty.master.try_clone().expect("a descriptor")));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                seen.lock().expect("nobody panics with it").process(&bytes[..length]);
            }
        });
        Self { child, keyboard: File::from(pty.master), line: pty.slave, shown }
    }

    /// What is to be seen now.
    pub fn text(&self) -> String {
        self.shown.lock().expect("nobody panics with it").screen().contents()
    }

    /// The same with its colours.
    pub fn cells(&self) -> vt100::Screen {
        self.shown.lock().expect("nobody panics with it").screen().clone()
    }

    /// Whether the program has the screen to itself.
    pub fn is_alternate(&self) -> bool {
        self.shown.lock().expect("nobody panics with it").screen().alternate_screen()
    }

    /// How the terminal treats keys and output.
    pub fn settings(&self) -> Termios {
        tcgetattr(&self.line).expect("a terminal")
    }

    #[track_caller]
    pub fn wait_for(&self, what: &str) {
        let found = wait_until(PATIENCE, || self.text().contains(what));
        assert!(found, "never on the screen: {what}\n{}", self.text());
    }

    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal takes keys");
    }

    pub fn child(&self) -> &Child {
        &self.child
    }

    /// Waits until the program ends by itself.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until(PATIENCE, || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        });
        status.unwrap_or_else(|| panic!("it does not end\n{}", self.text()))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
