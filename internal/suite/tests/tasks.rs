//! Every asynchronous adapter's client, with what only futures have.

mod async_std {
    nbd_suite::task_suite!(nbd_suite::clients::AsyncStdClient);
}

mod smol {
    nbd_suite::task_suite!(nbd_suite::clients::SmolClient);
}

mod tokio_current_thread {
    nbd_suite::task_suite!(nbd_suite::clients::TokioClientCurrentThread);
}

mod tokio_multi_thread {
    nbd_suite::task_suite!(nbd_suite::clients::TokioClientMultiThread);
}

mod mio {
    nbd_suite::task_suite!(nbd_suite::clients::MioClient);
}
