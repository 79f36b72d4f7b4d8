//! The daemon's own process, under the names that all exporters use
//! (<https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>).

use procfs::process::{LimitValue, Process};
use procfs::{ProcResult, WithCurrentSystemInfo as _, boot_time_secs, ticks_per_second};

use super::metric::Metric;
use super::page::{Page, number};

/// Adds what `/proc` says of this process; what cannot be read is left out.
pub fn put(page: &mut Page) {
    if let Err(error) = try_put(page) {
        tracing::debug!(%error, "no metrics of the process");
    }
}

fn try_put(page: &mut Page) -> ProcResult<()> {
    let process = Process::myself()?;
    let stat = process.stat()?;
    let ticks = number(ticks_per_second());
    page.put(Metric::ProcessCpuSeconds, &[], number(stat.utime + stat.stime) / ticks);
    page.put(Metric::ProcessStartTime, &[], number(boot_time_secs()?) + number(stat.starttime) / ticks);
    page.count(Metric::ProcessVirtualMemory, &[], stat.vsize);
    page.count(Metric::ProcessResidentMemory, &[], stat.rss_bytes().get());
    page.count(Metric::ProcessThreads, &[], stat.num_threads.try_into().unwrap_or(0));
    page.count(Metric::ProcessOpenFds, &[], process.fd_count()? as u64);
    if let LimitValue::Value(limit) = process.limits()?.max_open_files.soft_limit {
        page.count(Metric::ProcessMaxFds, &[], limit);
    }
    Ok(())
}
