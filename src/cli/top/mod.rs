//! `podwire top`: one node, live.
//!
//! ```text
//!   daemon ◀──asks── reader thread ──readings──▶ screen ◀──keys── terminal
//! ```
//!
//! The daemon is asked on a thread of its own, so that the keys work while it does not answer. It may come and go: what
//! it said last stays on the screen, marked as old.

mod scene;
mod screen;
mod sections;

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::{DefaultTerminal, restore, try_init};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::args::{Args, Format, Top};
use super::{CliError, output};
use scene::{Reading, Scene};
use screen::{Screen, Wish};

/// How long keys and signals may go unseen.
const GLANCE: Duration = Duration::from_millis(100);

/// How long it is told that the daemon was started anew.
const NEWS: Duration = Duration::from_secs(10);

pub(super) fn run(args: &Args, top: &Top) -> Result<(), CliError> {
    let interval = Duration::from_secs(top.interval);
    if top.once {
        let before = Reading::take(args)?;
        thread::sleep(interval);
        let scene = Scene::between(&before, &Reading::take(args)?);
        return Ok(output::print(args.output, &scene, sections::text)?);
    }
    if args.output == Format::Json {
        return Err(CliError::Refused("the live view is for people; JSON takes `podwire top --once`".to_owned()));
    }
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(CliError::Refused("the live view needs a terminal; scripts use `podwire top --once`".to_owned()));
    }
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&ended))?;
    }
    // Fails by itself, with words, where no daemon has ever run.
    Reading::take(args)?;
    let readings = read_on(args.clone(), interval)?;
    let mut terminal = Terminal::open()?;
    live(&mut terminal.0, &readings, &ended)
}

/// The terminal as the live view needs it. It is as before when this is dropped, and after a panic.
struct Terminal(DefaultTerminal);

impl Terminal {
    fn open() -> io::Result<Self> {
        // On an error half of it may be done.
        try_init().map(Self).inspect_err(|_| restore())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Asks the daemon every `interval`, on a thread that ends when nobody listens any more.
fn read_on(args: Args, interval: Duration) -> io::Result<Receiver<Result<Reading, CliError>>> {
    let (tell, told) = channel();
    let read = move |tell: Sender<_>| {
        while tell.send(Reading::take(&args)).is_ok() {
            thread::sleep(interval);
        }
    };
    thread::Builder::new().name("reader".into()).spawn(move || read(tell))?;
    Ok(told)
}

fn live(
    terminal: &mut DefaultTerminal,
    readings: &Receiver<Result<Reading, CliError>>,
    ended: &AtomicBool,
) -> Result<(), CliError> {
    let (mut screen, mut node) = (Screen::default(), Watched::default());
    while !ended.load(Ordering::Relaxed) {
        for reading in readings.try_iter() {
            node.take(reading, &mut screen);
        }
        screen.say(node.notice(Instant::now()));
        terminal.draw(|frame| screen.draw(frame))?;
        if event::poll(GLANCE)?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
            && screen.press(key) == Wish::Quit
        {
            break;
        }
    }
    Ok(())
}

/// What is known of the daemon.
#[derive(Debug, Default)]
struct Watched {
    last: Option<Reading>,
    /// Since when it does not answer, and why.
    away: Option<(Instant, String)>,
    restarted: Option<Instant>,
}

impl Watched {
    fn take(&mut self, reading: Result<Reading, CliError>, screen: &mut Screen) {
        let reading = match reading {
            Ok(reading) => reading,
            Err(error) => {
                let since = self.away.take().map_or_else(Instant::now, |(since, _)| since);
                self.away = Some((since, error.to_string()));
                return;
            }
        };
        self.away = None;
        if let Some(before) = &self.last {
            if reading.status.uptime_secs < before.status.uptime_secs {
                self.restarted = Some(reading.at);
            }
            screen.show(Scene::between(before, &reading));
        }
        self.last = Some(reading);
    }

    /// What the user should know besides the figures.
    fn notice(&self, now: Instant) -> Option<String> {
        if let Some((since, why)) = &self.away {
            let secs = now.saturating_duration_since(*since).as_secs();
            return Some(format!("no daemon for {secs} s, these are old figures: {why}"));
        }
        let is_news = self.restarted.is_some_and(|at| now.saturating_duration_since(at) < NEWS);
        is_news.then(|| "the daemon was started anew; its counters begin again".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::process::Command;
    use std::{env, thread};

    use nix::pty::{Winsize, openpty};
    use nix::sys::termios::{LocalFlags, tcgetattr};

    use super::*;

    /// Has this test be the one that panics.
    const PANICS: &str = "PODWIRE_TEST_TOP_PANICS";

    /// Runs itself again in a terminal of its own, to panic there.
    #[test]
    fn a_panic_leaves_the_terminal_as_it_was_and_is_to_be_read() {
        const NAME: &str = "cli::top::tests::a_panic_leaves_the_terminal_as_it_was_and_is_to_be_read";
        if env::var_os(PANICS).is_some() {
            let mut terminal = Terminal::open().unwrap();
            terminal.0.draw(|frame| Screen::default().draw(frame)).unwrap();
            panic!("a fault of the live view");
        }
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let end = || pty.slave.try_clone().unwrap();
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(env::current_exe().unwrap()).args(["--exact", NAME, "--nocapture"]);
        let mut child = command.env(PANICS, "1").stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        let mut output = File::from(pty.master);
        let shown = thread::spawn(move || {
            let (mut screen, mut bytes, mut entered) = (vt100::Parser::new(24, 80, 0), [0; 4096], false);
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                for byte in &bytes[..length] {
                    screen.process(&[*byte]);
                    entered |= screen.screen().alternate_screen();
                }
            }
            (entered, screen.screen().clone())
        });
        assert!(!child.wait().unwrap().success());
        let flags = tcgetattr(&pty.slave).unwrap().local_flags;
        assert!(flags.contains(LocalFlags::ECHO | LocalFlags::ICANON), "{flags:?}");
        drop(command);
        drop(pty.slave);
        let (entered, screen) = shown.join().unwrap();
        assert!(entered && !screen.alternate_screen(), "{}", screen.contents());
        assert!(screen.contents().contains("a fault of the live view"), "{}", screen.contents());
    }
}
