use std::process::ExitCode;

use podwire::control::dataplane::Dataplane;

fn main() -> ExitCode {
    podwire::cli::main(Dataplane::engine)
}
