//! PID 1 of the initrd: prepares the system, greets the host, serves it until power-off.

use std::{env, hint::black_box, process::ExitCode, time::Duration};

use nix::unistd::getpid;
use teuthis_guest::{agent::Agent, flows, log, power, system, transport};

/// How long the host's first command has the processor for itself, before the drivers are loaded
/// that nobody needs for it.
const INTEGRATION_DELAY: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    black_box(&flows::FINGERPRINT);
    if getpid().as_raw() != 1 {
        if env::args().nth(1).as_deref() == Some(power::REQUEST) {
            return power::request().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
        }
        eprintln!(
            "teuthis-guest is the init process of a Teuthis virtual machine; it does not run elsewhere"
        );
        return ExitCode::FAILURE;
    }
    let late = match system::prepare() {
        Ok(late) => late,
        Err(error) => {
            // Without init the kernel panics, and its last words, this line among them, reach the
            // host by registers: no connection is needed for that.
            log::line(&error.to_string());
            return ExitCode::FAILURE;
        }
    };
    system::connect();
    let agent = transport::connect()
        .and_then(|ends| Agent::new(ends.listener, ends.greeting)?.obeying_signals());
    match agent {
        Ok(agent) => {
            system::finish();
            power::prepare();
            let mut agent = agent.after(INTEGRATION_DELAY, || system::load(late));
            power::off(agent.run())
        }
        Err(error) => {
            log::line(&format!(
                "no connection to the host ({error}): the kernel needs hv_vmbus and hv_sock, \
                 built in or as modules beside it"
            ));
            ExitCode::FAILURE
        }
    }
}
