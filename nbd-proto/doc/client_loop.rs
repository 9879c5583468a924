fn fetch(mut stream: impl Read + Write, name: &str, size: u64) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut connection = Connection::new(Config::for_export(name))?;
    let mut received = RecvBuffer::new();
    let mut data = vec![0; size as usize];
    let mut outcome = Ok(());
    loop {
        if let Some(event) = connection.next_event(&mut received) {
            match event {
                Event::Ready => _ = connection.submit(Command::read(0, size))?,
                Event::Hole { offset, length, .. } => {
                    data[offset as usize..][..length as usize].fill(0);
                }
                Event::Completed { result, .. } => {
                    outcome = result;
                    connection.disconnect();
                }
                Event::Closed(end) => return Ok(end.map(|_reason| outcome)?.map(|()| data)?),
                _ => {}
            }
        } else if let Some(segment) = connection.segments().next() {
            stream.write_all(match segment {
                Segment::Control(bytes) => bytes,
                Segment::Body { offset, length, .. } => &data[offset as usize..][..length],
            })?;
            let _ = connection.transmitted(segment.len())?; // Would name writes whose data is sent.
        } else if let Wants::Payload { offset, remaining, .. } = connection.wants() {
            let room = &mut data[offset as usize..][..remaining as usize];
            match if received.is_empty() { stream.read(room)? } else { received.copy_to(room) } {
                0 => connection.end_of_stream(),
                count => connection.payload_received(count as u64)?,
            }
        } else {
            match stream.read(received.spare_capacity_mut())? {
                0 => connection.end_of_stream(),
                count => received.advance(count),
            }
        }
    }
}
