fn read_start(mut stream: impl Read + Write, export: &str, length: u64) -> io::Result<Vec<u8>> {
    let mut connection = Connection::new(Config::for_export(export)).map_err(io::Error::other)?;
    let mut received = RecvBuffer::new();
    let mut data = vec![0; length as usize];
    let mut outcome = Ok(());
    loop {
        if let Some(event) = connection.next_event(&mut received) {
            match event {
                Event::Ready => {
                    connection.submit(Command::read(0, length)).map_err(io::Error::other)?;
                }
                Event::Hole { offset, length, .. } => data[offset as usize..][..length as usize].fill(0),
                Event::Completed { result, .. } => {
                    outcome = result.map_err(io::Error::other);
                    connection.disconnect();
                }
                Event::Closed(end) => return end.map_err(io::Error::other).and(outcome).map(|()| data),
                _ => {}
            }
        } else if let Some(segment) = connection.segments().next() {
            // Only writes have a body, which would be a part of what they write.
            let Segment::Control(bytes) = segment else { unreachable!("a read has no body") };
            stream.write_all(bytes)?;
            let _ = connection.transmitted(segment.len()).unwrap();
        } else if let Wants::Payload { offset, remaining, .. } = connection.wants() {
            let room = &mut data[offset as usize..][..remaining as usize];
            match if received.is_empty() { stream.read(room)? } else { received.copy_to(room) } {
                0 => connection.end_of_stream(),
                count => connection.payload_received(count as u64).unwrap(),
            }
        } else {
            match stream.read(received.spare_capacity_mut())? {
                0 => connection.end_of_stream(),
                count => received.advance(count),
            }
        }
    }
}
