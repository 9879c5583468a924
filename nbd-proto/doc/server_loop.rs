fn serve(
    mut stream: impl Read + Write,
    export: &ExportInfo,
    disk: &mut [u8],
) -> Result<(), Box<dyn Error>> {
    let mut connection = Connection::new(Config::default());
    let mut received = RecvBuffer::new();
    let mut buffers: HashMap<RequestId, Vec<u8>> = HashMap::new();
    loop {
        if let Some(event) = connection.next_event(&mut received) {
            match event {
                Event::List => connection.answer_list([])?,
                Event::Lookup(lookup) => {
                    let known = Some(export).filter(|_| lookup.name.is_empty());
                    connection.answer_lookup(known.ok_or(LookupRefusal::Unknown))?;
                }
                Event::Request { id, .. } => {
                    carry_out(connection.reply(id)?, buffers.entry(id).or_default(), disk)?;
                }
                Event::Closed(end) => return Ok(end.map(|_reason| ())?),
                _ => {}
            }
        } else if let Some(segment) = connection.segments().next() {
            stream.write_all(match segment {
                Segment::Control(bytes) => bytes,
                Segment::Body { id, offset, length } => &buffers[&id][offset as usize..][..length],
            })?;
            for id in connection.transmitted(segment.len())? {
                buffers.remove(&id);
            }
        } else if let Wants::Payload { id, command, offset, .. } = connection.wants() {
            let buffer = buffers.entry(id).or_insert_with(|| vec![0; command.length() as usize]);
            let room = &mut buffer[offset as usize..];
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

fn carry_out(mut reply: Reply<'_>, buffer: &mut Vec<u8>, disk: &mut [u8]) -> Result<(), Misuse> {
    match reply.command() {
        Command::Read { offset, length, .. } => {
            buffer.extend_from_slice(&disk[offset as usize..][..length as usize]);
            reply.data(offset, length)?;
        }
        Command::Write { offset, .. } => {
            disk[offset as usize..][..buffer.len()].copy_from_slice(buffer);
        }
        _ => {} // Nothing else was advertised, so that nothing else arrives.
    }
    reply.finish()
}
