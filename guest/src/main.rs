//! PID 1 of the initrd: prepares the system, greets the host, serves it until power-off.

use std::process::ExitCode;

use nix::unistd::getpid;
use teuthis_guest::{agent::Agent, log, power, system, transport};

fn main() -> ExitCode {
    if getpid().as_raw() != 1 {
        eprintln!(
            "teuthis-guest is the init process of a Teuthis virtual machine; it does not run elsewhere"
        );
        return ExitCode::FAILURE;
    }
    system::prepare();
    system::connect();
    match transport::connect().and_then(|ends| Agent::new(ends.listener, ends.greeting)) {
        Ok(agent) => {
            system::finish();
            power::off(agent.run())
        }
        Err(error) => {
            // Without init the kernel panics, and its last words, this line among them, reach the
            // host by registers: no connection is needed for that.
            log::line(&format!(
                "no connection to the host ({error}): the kernel needs hv_vmbus and hv_sock, \
                 built in or as modules beside it"
            ));
            ExitCode::FAILURE
        }
    }
}
