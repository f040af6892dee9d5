//! `ringgate run`: serves until a signal ends it.

use std::io::Write as _;
use std::process::ExitCode;
use std::rc::Rc;

use crate::control::config::Config;
use crate::control::supervise;
use crate::control::upgrade::Inherited;

/// What to try while the demo runs.
const DEMO_HINTS: &str = "
Ringgate's demo is up: a proxy on 127.0.0.1:8080 before two sample upstreams. Try:

  curl http://127.0.0.1:8080/            from one of the two upstreams
  curl -i http://127.0.0.1:8080/ping     a fixed response
  curl -i http://127.0.0.1:8080/old      a redirect
  curl http://127.0.0.1:9090/status      what it is doing
  curl http://127.0.0.1:9090/metrics     the same for Prometheus

Ctrl-C ends it. The configuration is deploy/demo.toml.

";

/// Serves `config`; exit code 0 after an orderly end, 1 when it cannot start or a shard fails.
#[must_use]
pub fn run(config: Config, demo: bool, inherited: Option<Rc<Inherited>>) -> ExitCode {
    let serving = move || {
        if demo {
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(DEMO_HINTS.as_bytes()).and_then(|()| out.flush());
        }
    };
    match supervise::run(config, inherited.clone(), serving) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            if let Some(inherited) = inherited {
                inherited.failed(&failed.to_string());
            }
            let _ = writeln!(std::io::stderr(), "ringgate: {failed}");
            ExitCode::FAILURE
        }
    }
}
