//! What changed from one look at a server to the next one, by the second.

use std::time::Duration;

use crate::serve::Status;

/// Adds the rates since an earlier look, which was so long ago. What was not there then has none.
pub(super) fn add(later: &mut Status, earlier: &Status, time: Duration) {
    let seconds = time.as_secs_f64();
    // A server that was started again begins to count anew.
    let same = later.pid == earlier.pid && later.uptime_seconds >= earlier.uptime_seconds;
    if seconds <= 0.0 || !same {
        return;
    }
    let rate = |now: u64, before: u64| Some(now.saturating_sub(before) as f64 / seconds);
    let (traffic, before) = (&mut later.traffic, &earlier.traffic);
    traffic.received_bytes_per_second = rate(traffic.received_bytes, before.received_bytes);
    traffic.sent_bytes_per_second = rate(traffic.sent_bytes, before.sent_bytes);
    for export in &mut later.exports {
        let before = earlier.exports.iter().find(|before| before.name == export.name);
        if let Some(before) = before {
            export.requests_per_second = rate(export.requests, before.requests);
            export.read_bytes_per_second = rate(export.read_bytes, before.read_bytes);
            export.written_bytes_per_second = rate(export.written_bytes, before.written_bytes);
        }
    }
    for client in &mut later.clients {
        if let Some(before) = earlier.clients.iter().find(|before| before.id == client.id) {
            client.requests_per_second = rate(client.requests, before.requests);
            client.received_bytes_per_second = rate(client.received_bytes, before.received_bytes);
            client.sent_bytes_per_second = rate(client.sent_bytes, before.sent_bytes);
        }
    }
}
