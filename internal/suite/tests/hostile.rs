//! Every adapter's client, with servers that break the rules.

mod blocking {
    nbd_suite::hostile_suite!(nbd_suite::clients::BlockingClient);
}

mod async_std {
    nbd_suite::hostile_suite!(nbd_suite::clients::AsyncStdClient);
}

mod smol {
    nbd_suite::hostile_suite!(nbd_suite::clients::SmolClient);
}

mod tokio_current_thread {
    nbd_suite::hostile_suite!(nbd_suite::clients::TokioClientCurrentThread);
}

mod tokio_multi_thread {
    nbd_suite::hostile_suite!(nbd_suite::clients::TokioClientMultiThread);
}

mod mio {
    nbd_suite::hostile_suite!(nbd_suite::clients::MioClient);
}
