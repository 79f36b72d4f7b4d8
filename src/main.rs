use std::process::ExitCode;

use podwire::cni;
use podwire::control::dataplane::Dataplane;

fn main() -> ExitCode {
    if cni::is_called() {
        return cni::main();
    }
    podwire::cli::main(Dataplane::engine)
}
