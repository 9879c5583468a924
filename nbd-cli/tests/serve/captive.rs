//! `--run`: a command that runs while it is served.

use std::process::Command;

use nbd_testkit::peers;
use nbd_testkit::process::{Background, run};

use super::{LIMIT, RUNTIMES, refuses, serve};

#[test]
fn the_command_finds_the_server_and_gives_its_status() {
    for runtime in RUNTIMES {
        let script = "nbd=\"$0\"; \"$0\" info --size \"$uri\"; test -S \"$unixsocket\" -a -z \"$port\"; exit 7";
        let mut command = serve(["--runtime", runtime, "memory:1M", "--run"]);
        let bin = env!("CARGO_BIN_EXE_nbd");
        let script = script.replace("$0", bin).replace("nbd=\"", "_=\"");
        let finished = run(command.arg(&script), LIMIT);
        assert_eq!(finished.stdout, "1048576\n", "nothing else is printed: {}", finished.stderr);
        assert_eq!((finished.status.code(), &*finished.stderr), (Some(7), ""), "{runtime}");
    }
}

#[test]
fn the_variables_are_those_of_nbdkit() {
    for (listen, says) in [
        (&["--port", "0"][..], "nbd://127.0.0.1:$port/|"),
        (&["-U", "-"], "nbd+unix:///?socket=$unixsocket|$unixsocket"),
        (&[], "nbd+unix:///?socket=$unixsocket|$unixsocket"),
    ] {
        let mut command = serve(listen);
        command.args(["disk=memory:1M", "--run"]);
        // The shell compares, as it knows the rest.
        let script = format!(
            "echo \"$uri|$unixsocket|$nbd|$exportname\"; echo \"{says}|$uri|disk\"; test -z \"$LISTEN_FDS\""
        );
        let said = run(command.arg(script), LIMIT).success();
        let lines: Vec<&str> = said.lines().collect();
        assert!(matches!(lines[..], [found, expected] if found == expected), "{said}");
    }
}

#[test]
fn a_private_socket_goes_with_its_folder() {
    let mut command = serve(["memory:1M", "--run", "echo \"$unixsocket\""]);
    let path = run(&mut command, LIMIT).success();
    let path = std::path::Path::new(path.trim());
    assert!(path.is_absolute() && !path.exists() && !path.parent().unwrap().exists());
}

#[test]
fn the_command_is_asked_to_end_with_the_server() {
    let script = "trap 'echo asked; exit 5' TERM; echo started; while :; do sleep 0.01; done";
    let mut command = serve(["memory:1M", "--run", script]);
    let mut server = Background::spawn(&mut command).unwrap();
    assert_eq!(server.next_line(LIMIT).as_deref(), Some("started"));
    server.terminate();
    assert_eq!(server.next_line(LIMIT).as_deref(), Some("asked"));
    assert_eq!(server.wait_exit(LIMIT).and_then(|status| status.code()), Some(5));
}

#[test]
fn a_command_of_nbdkit_works_as_it_is() {
    let Some(_) = peers::require("qemu-img") else { return };
    let mut command = serve(["memory:1M", "--run", "qemu-img info --output=json \"$nbd\""]);
    let said = run(&mut command, LIMIT).success();
    assert!(said.contains("\"virtual-size\": 1048576"), "{said}");
}

#[test]
fn a_server_that_does_not_start_runs_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let made = folder.path().join("made");
    let script = format!("touch '{}'", made.display());
    refuses(&mut serve(["/no/such/disk", "--run", &script]), 1, &["/no/such/disk"]);
    refuses(&mut serve(["--take-over", "control", "--run", &script]), 64, &["--run"]);
    assert!(!made.exists());
    let mut command = Command::new("sh");
    let script = "exec 3<&0; export LISTEN_PID=$$; exec \"$0\" serve --run 'exit 3' memory:1M";
    command.args(["-c", script, env!("CARGO_BIN_EXE_nbd")]).env("LISTEN_FDS", "1");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    command.stdin(std::os::fd::OwnedFd::from(listener));
    assert_eq!(command.output().unwrap().status.code(), Some(3), "on the socket that it is given");
}
