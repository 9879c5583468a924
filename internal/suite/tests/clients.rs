//! Every adapter's client, with the server of the same adapter.

mod blocking {
    nbd_suite::client_suite!(nbd_suite::clients::BlockingClient, nbd_suite::adapters::Blocking);
}

mod tokio_current_thread {
    nbd_suite::client_suite!(
        nbd_suite::clients::TokioClientCurrentThread,
        nbd_suite::adapters::TokioCurrentThread
    );
}

mod tokio_multi_thread {
    nbd_suite::client_suite!(
        nbd_suite::clients::TokioClientMultiThread,
        nbd_suite::adapters::TokioMultiThread
    );
}
