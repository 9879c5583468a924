//! One blocking client, many threads.

use std::os::unix::net::UnixStream;
use std::thread;

use nbd_blocking::client::{ClientConfig, Error, Flags, Pending};
use nbd_blocking::export::{Export, ExportMap, Memory};
use nbd_blocking::{Client, Server};
use nbd_support::bounded;
use nbd_support::exports::{GATED, Gate};
use nbd_testkit::Pattern;

fn connected(export: impl Export) -> (Server, Client) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = Server::new(ExportMap::new().with("", export).unwrap());
    let serving = server.clone();
    thread::spawn(move || serving.serve_unix(ours));
    (server, Client::over_unix(theirs, "", &ClientConfig::default()).unwrap())
}

#[test]
fn eight_threads_share_a_client() {
    bounded(|| {
        let (_server, client) = connected(Memory::new(8 << 20).unwrap());
        thread::scope(|scope| {
            for thread in 0..8 {
                let client = client.clone();
                scope.spawn(move || {
                    let mut found = vec![0; 4096];
                    for at in 0..500 {
                        let offset = (thread << 20) + (at % 256) * 4096;
                        let data = Pattern(thread ^ at).bytes(offset, 4096);
                        client.write_all_at(&data, offset).unwrap();
                        client.read_exact_at(&mut found, offset).unwrap();
                        assert_eq!(found, data);
                    }
                });
            }
        });
    });
}

#[test]
fn threads_keep_many_requests_in_flight() {
    bounded(|| {
        let (_server, client) = connected(Memory::new(8 << 20).unwrap());
        thread::scope(|scope| {
            for thread in 0..4_u64 {
                let client = &client;
                scope.spawn(move || {
                    for round in 0..20 {
                        let offset = |at: u64| (thread << 20) + at * 8192;
                        let data = |at| Pattern(round).bytes(offset(at), 8192);
                        let writes: Vec<_> = (0..32)
                            .map(|at| {
                                client.submit_write_from(offset(at), data(at), Flags::empty())
                            })
                            .collect();
                        for write in writes {
                            write.wait().1.unwrap();
                        }
                        let reads: Vec<_> = (0..32)
                            .map(|at| {
                                client.submit_read_into(offset(at), vec![0; 8192], Flags::empty())
                            })
                            .collect();
                        for (at, read) in (0..).zip(reads) {
                            let (found, result) = read.wait();
                            result.unwrap();
                            assert_eq!(found, data(at));
                        }
                    }
                });
            }
        });
    });
}

#[test]
fn whoever_leads_hands_over_when_its_own_request_is_answered() {
    bounded(|| {
        let (gate, key) = Gate::new();
        let (_server, client) = connected(gate);
        let slow: Vec<_> = (0..3)
            .map(|at| {
                let client = client.clone();
                thread::spawn(move || client.read(GATED + at * 512, 512, Flags::empty()))
            })
            .collect();
        key.await_waiting(3);
        // One of them leads; these come and go beside it.
        for _ in 0..100 {
            client.read(0, 512, Flags::empty()).unwrap();
        }
        key.open();
        for thread in slow {
            assert_eq!(thread.join().unwrap().unwrap(), vec![0; 512]);
        }
    });
}

#[test]
fn a_lost_connection_wakes_everybody() {
    bounded(|| {
        let (gate, key) = Gate::new();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let end = ours.try_clone().unwrap();
        let server = Server::new(ExportMap::new().with("", gate).unwrap());
        thread::spawn(move || server.serve_unix(ours));
        let client = Client::over_unix(theirs, "", &ClientConfig::default()).unwrap();
        let waiting: Vec<_> = (0..4)
            .map(|at| {
                let client = client.clone();
                thread::spawn(move || client.read(GATED + at * 512, 512, Flags::empty()))
            })
            .collect();
        key.await_waiting(4);
        end.shutdown(std::net::Shutdown::Both).unwrap();
        for thread in waiting {
            let error = thread.join().unwrap().unwrap_err();
            assert!(matches!(error, Error::Lost { sent: true, .. }), "{error}");
        }
        key.open();
    });
}

#[test]
fn whoever_waits_for_any_request_hands_over_too() {
    bounded(|| {
        let (gate, key) = Gate::new();
        let (_server, client) = connected(gate);
        let slow = client.clone();
        let slow = thread::spawn(move || slow.read(GATED, 512, Flags::empty()));
        key.await_waiting(1);
        // Each leaves a worker of the server's at the gate, and there are not many.
        for _ in 0..10 {
            let reads = [
                client.submit_read_into(GATED, vec![1; 512], Flags::empty()),
                client.submit_read_into(0, vec![1; 512], Flags::empty()),
            ];
            assert_eq!(Pending::wait_any(&reads), Some(1));
            assert!(!reads[0].is_done());
        }
        assert_eq!(Pending::<Result<(), Error>>::wait_any(&[]), None);
        key.open();
        assert_eq!(slow.join().unwrap().unwrap(), vec![0; 512]);
    });
}

#[test]
fn a_thread_may_wait_for_a_request_that_another_one_submitted() {
    bounded(|| {
        let (_server, client) = connected(Memory::new(1 << 20).unwrap());
        let pending = client.submit_read_into(0, vec![1; 512], Flags::empty());
        let (found, result) = thread::spawn(move || pending.wait()).join().unwrap();
        result.unwrap();
        assert_eq!(found, [0; 512]);
    });
}
