//! The program itself, with the one server that is always there.

use std::process::Command;

#[test]
fn the_yardstick_is_started_loaded_and_ended() {
    let output = Command::new(env!("CARGO_BIN_EXE_nbd-bench"))
        .args(["compare", "--only", "yardstick", "--workload", "read-4k-qd1,write-4k-qd32"])
        .args(["--seconds", "0.02", "--rounds", "1", "--json"])
        .output()
        .expect("the program runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let workloads = report["workloads"].as_array().expect("workloads");
    assert_eq!(workloads.len(), 2);
    for workload in workloads {
        let rate = workload["servers"][0]["requests_per_second"].as_f64().expect("a rate");
        assert!(rate > 0.0, "{workload}");
    }
}
