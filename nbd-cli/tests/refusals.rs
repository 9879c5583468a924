//! Every refusal of a command line or a configuration, with its exit status: `refusals.txt` has what was agreed on.
//!
//! Each line is run by one shell in a folder with a few files. What `nbd` can refuse without a server, a kernel's
//! client or another user is here; [`ELSEWHERE`] says which tests have the rest. A refusal that is in neither fails a
//! test.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nbd_testkit::process::run;
use nbd_testkit::server::nbd_binary;
use nbd_testkit::snapshot::check;

const LIMIT: Duration = Duration::from_secs(120);

/// Files of the folder: their names, and what they hold.
const FILES: &[(&str, &str)] = &[
    ("disk.img", "a disk of 24 bytes, as is"),
    ("small.img", "x"),
    ("folder/a.img", "x"),
    ("resumed.img.nbd-copy", "x"),
    ("encrypted/ca-cert.pem", "x"),
    ("encrypted/ca-key.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----"),
    ("broken/ca-cert.pem", "x"),
    ("broken/ca-key.pem", "x"),
    ("broken/server-cert.pem", "x"),
    ("tracked.toml", "[[export]]\nmemory = '1M'\ntrack = ['a']\n"),
    ("keys.psk", "alice:00112233445566778899aabbccddeeff\n"),
];

/// Command lines.
const LINES: &[&str] = &[
    "nbd",
    "nbd frobnicate",
    "nbd sevre",
    "nbd serve --port http",
    "nbd serve --port 65536",
    "nbd serve memory:",
    "nbd serve memory:big",
    "nbd serve memory:9E",
    "nbd serve memory:8E",
    "nbd serve ''",
    "nbd serve memory",
    "nbd serve 10M",
    "nbd serve ram:10M",
    "nbd serve s3://bucket/disk",
    "nbd serve missing.img",
    "nbd serve missing/disk.img",
    "nbd serve /dev/no-such-disk",
    "nbd serve folder",
    "nbd serve dir:disk.img",
    "nbd serve dir:missing",
    "nbd serve a=memory:1M a=memory:1M",
    "nbd serve disk.img small.img",
    "nbd serve dir:folder dir:folder",
    "nbd serve --track b a=disk.img b=disk.img",
    "nbd serve --resize a=disk.img b=disk.img",
    "nbd serve --block-size 3 disk.img",
    "nbd serve --block-size 4k disk.img",
    "nbd serve --block-size-required disk.img",
    "nbd serve --track '' disk.img",
    "nbd serve --track b -r disk.img",
    "nbd serve --track b dir:folder",
    "nbd serve --layer cow disk.img",
    "nbd serve --layer partition disk.img",
    "nbd serve --layer partition:0 disk.img",
    "nbd serve --layer partition:1 disk.img",
    "nbd serve --layer read-only:1 disk.img",
    "nbd serve --layer offset:x disk.img",
    "nbd serve --layer offset:1M disk.img",
    "nbd serve --layer offset:1,offset=2 disk.img",
    "nbd serve --layer rate:speed=1 disk.img",
    "nbd serve --layer rate:fast disk.img",
    "nbd serve --layer delay:2s-1s disk.img",
    "nbd serve --layer delay:x disk.img",
    "nbd serve --layer error:EWHAT disk.img",
    "nbd serve --layer error:EIO,probability=2 disk.img",
    "nbd serve --layer error:EIO,commands=reed disk.img",
    "nbd serve --layer error:EIO,seed=x disk.img",
    "nbd serve --layer overlay:small.img disk.img",
    "nbd serve --layer overlay:o dir:folder",
    "nbd serve --tls require",
    "nbd serve --tls-certificates missing",
    "nbd serve --tls off --tls-certificates folder",
    "nbd serve --tls-only a --tls-certificates folder a=memory:1M b=memory:1M --tls-only c",
    "nbd serve --tls on --tls-certificates folder --tls-verify-peer",
    "nbd serve --tls-psk keys.psk --tls-certificates folder",
    "nbd serve --tls require --tls-certificates folder --oldstyle",
    "nbd serve --oldstyle a=memory:1M b=memory:1M",
    "nbd serve --oldstyle dir:folder",
    "nbd serve --oldstyle --track b memory:1M",
    "nbd serve --allow 10.0.0.1/8",
    "nbd serve --allow 10.0.0.0/33",
    "nbd serve --allow localhost",
    "nbd serve --allow-user no-such-user",
    "nbd serve --allow-group 4294967296",
    "nbd serve --unix ''",
    "nbd serve --unix disk.img",
    "nbd serve --unix missing/socket",
    "nbd serve --control ''",
    "nbd serve --control disk.img",
    "nbd serve --unix socket --control socket",
    "nbd serve --vsock x",
    "nbd serve --idle-timeout 0",
    "nbd serve --idle-timeout x",
    "nbd serve --drain-timeout x",
    "nbd serve --max-connections 0",
    "nbd serve --metrics x",
    "nbd serve --ready-fd 77",
    "nbd serve --stdio --port 1",
    "nbd serve --sandbox require --pid-file pid",
    "nbd serve --take-over control --track b disk.img",
    "nbd serve --config missing.toml",
    "nbd serve --config nbd.toml disk.img",
    "nbd serve --config nbd.toml --port 1",
    "nbd serve --take-over control --config tracked.toml",
    "LISTEN_PID=x LISTEN_FDS=1 nbd serve",
    "NBD_LOG=loud nbd serve",
    "nbd serve --print-config \"$(printf 'caf\\351')\"",
    "nbd serve --export-name \"$(printf 'caf\\351')\"",
    "nbd info",
    "nbd info disk.img",
    "nbd info localhost",
    "nbd info localhost:10809",
    "nbd info http://localhost",
    "nbd info nbd://localhost:x",
    "nbd info nbd://localhost:99999",
    "nbd info 'nbd://a b/'",
    "nbd info nbd://localhost/%zz",
    "nbd info nbd://::1/",
    "nbd info nbd:///a#b",
    "nbd info nbd+unix:///a",
    "nbd info nbd+unix://host/?socket=a",
    "nbd info 'nbd://localhost/?socket=a'",
    "nbd info 'nbd://localhost/?color=red'",
    "nbd info 'nbd+unix:///?socket=a&socket=b'",
    "nbd info 'nbds://localhost/?tls-verify-peer=maybe'",
    "nbd info 'nbds://localhost/?tls-type=anon'",
    "nbd info nbd+ssh://host",
    "nbd info nbd+unix:///?socket=missing",
    "nbd info nbd+unix:///?socket=disk.img",
    "nbd info nbd://localhost nbd://localhost",
    "nbd info --tls-certificates folder nbd://localhost",
    "nbd info --tls-username alice nbds://localhost",
    "nbd info --tls-psk keys.psk 'nbds://localhost/?tls-certificates=folder'",
    "nbd info --can fly nbd://localhost",
    "nbd info --timeout x nbd://localhost",
    "nbd info --size --map nbd://localhost",
    "nbd info [",
    "nbd info [ ]",
    "nbd info [ no-such-server ]",
    "nbd list disk.img",
    "nbd map --context x [ nbd serve disk.img ]",
    "nbd map --json --totals --svg x.svg nbd://localhost",
    "nbd map --offset 1M [ nbd serve disk.img ]",
    "nbd dump [ nbd serve disk.img ] x",
    "nbd dump [ nbd serve disk.img ] 0 1M",
    "nbd dump --raw --json nbd://localhost",
    "nbd copy",
    "nbd copy disk.img",
    "nbd copy disk.img disk.img",
    "nbd copy null: copy.img",
    "nbd copy missing.img copy.img",
    "nbd copy folder copy.img",
    "nbd copy disk.img folder",
    "nbd copy disk.img missing/copy.img",
    "nbd copy localhost:10809 copy.img",
    "nbd copy --connections 0 disk.img copy.img",
    "nbd copy --request-size 65M disk.img copy.img",
    "nbd copy --request-size 0 disk.img copy.img",
    "nbd copy --threads x disk.img copy.img",
    "nbd copy --progress=x disk.img copy.img",
    "nbd copy --progress=77 disk.img copy.img",
    "nbd copy --progress=0 disk.img copy.img",
    "nbd copy --verify - copy.img",
    "nbd copy --verify disk.img -",
    "nbd copy --resume disk.img null:",
    "nbd copy --resume - copy.img",
    "nbd copy --resume disk.img resumed.img",
    "nbd copy --resume --record record disk.img copy.img",
    "nbd copy --retry-delay 1 disk.img copy.img",
    "nbd copy disk.img [ nbd serve -r small.img ]",
    "nbd copy disk.img [ nbd serve memory:1 ]",
    "nbd copy disk.img ndb://localhost",
    "nbd compare disk.img",
    "nbd compare disk.img -",
    "nbd compare --length 1M disk.img disk.img",
    "nbd bench disk.img",
    "nbd bench --rw sideways nbd://localhost",
    "nbd bench --read-percent 50 nbd://localhost",
    "nbd bench --rw write [ nbd serve memory:1M ]",
    "nbd bench --rw write --destructive [ nbd serve -r memory:1M ]",
    "nbd bench --bs 1M --depth 65536 --connections 64 [ nbd serve memory:4M ]",
    "nbd bench --bs 1M [ nbd serve disk.img ]",
    "nbd bench --bs 3 [ nbd serve --block-size 512 memory:1M ]",
    "nbd bench --time 0 nbd://localhost",
    "nbd resize nbd://localhost",
    "nbd resize 10G nbd://localhost",
    "nbd resize nbd://localhost big",
    "nbd resize [ nbd serve disk.img ] 1M",
    "nbd resize [ nbd serve -r disk.img ] 1M",
    "nbd resize [ nbd serve --resize disk.img ] -1M",
    "nbd attach a b c",
    "nbd attach --persist [ nbd serve disk.img ]",
    "nbd attach nbd://localhost /dev/sda",
    "nbd detach /dev/sda",
    "nbd detach",
    "nbd overlay info disk.img",
    "nbd overlay info missing",
    "nbd overlay commit disk.img small.img",
    "nbd overlay discard disk.img",
    "nbd bitmap disk.img list",
    "nbd bitmap missing list",
    "nbd bitmap nbd://localhost list",
    "nbd export missing add ram:1M",
    "nbd reload missing",
    "nbd status missing",
    "nbd status --watch --interval 0 missing",
    "nbd disconnect missing one",
    "nbd cert folder/a.img",
    "nbd cert pki --name 'a b'",
    "nbd cert pki --client ''",
    "nbd cert pki --days 0",
    "nbd cert missing --renew",
    "nbd cert broken",
    "nbd cert broken --renew",
    "nbd cert broken --renew --name a --client b",
    "nbd cert encrypted --renew --name a --client b",
    "nbd cert broken --add-client ../bob",
    "nbd cert missing --add-client bob",
    "nbd cert pki --name \"$(printf '\\303\\244').example.org\"",
    "nbd psk keys.psk alice",
    "nbd psk keys.psk a:b",
    "nbd psk folder bob",
    "nbd completion tcsh",
    "nbd man --dir disk.img",
];

/// Configurations, for `nbd serve --check`.
const CONFIGURATIONS: &[&str] = &[
    "",
    "export = 1",
    "[[export]]\nmemory = '1M'\nsize = 3",
    "[[export]]\nmemory = '1M'\nfile = 'disk.img'",
    "[[export]]\nname = 'a'",
    "[[export]]\nfile = ''",
    "[[export]]\ndirectory = ''",
    "[[export]]\nmemory = 'big'",
    "[[export]]\nmemory = 1.5",
    "[[export]]\nmemory = '1M'\n[[export]]\nmemory = '1M'",
    "[[export]]\nname = 'a'\nmemory = '1M'\n[[export]]\nname = 'a'\nmemory = '1M'",
    "[[export]]\ndirectory = 'folder'\n[[export]]\ndirectory = 'folder'",
    "[[export]]\nmemory = '1M'\nblock-size = 5",
    "[[export]]\nmemory = '1M'\nblock-size-required = true",
    "[[export]]\nmemory = '1M'\nread-only = true\ntrack = ['a']",
    "[[export]]\nmemory = '1M'\ntrack = ['a', 'a']",
    "[[export]]\ndirectory = 'folder'\ntrack = ['a']",
    "[[export]]\ndirectory = 'folder'\nlayers = ['overlay:o']",
    "[[export]]\nmemory = '1M'\nlayers = ['cow']",
    "[[export]]\nmemory = '1M'\nname = \"a\\u0000b\"",
    "[[export]]\nmemory = '1M'\ndescription = \"a\\u0000b\"",
    "[server]\noldstyle = true\n[[export]]\nmemory = '1M'\nname = 'a'\n[[export]]\nmemory = '1M'",
    "[server]\noldstyle = true\n[[export]]\nmemory = '1M'\nallocation-depth = true\ntls-only = true",
    "[server]\noldstyle = true\n[[export]]\ndirectory = 'folder'",
    "[server]\ncontrol = ''\n[[export]]\nmemory = '1M'",
    "[server]\ncontrol = 'a'\n[[listen]]\nunix = 'a'\n[[export]]\nmemory = '1M'",
    "[server]\nlog = 'loud'\n[[export]]\nmemory = '1M'",
    "[server]\nmax-connections = 0\n[[export]]\nmemory = '1M'",
    "[server]\nidle-timeout = 'soon'\n[[export]]\nmemory = '1M'",
    "[server]\nmax-conections = 5\n[[export]]\nmemory = '1M'",
    "[[listen]]\n[[export]]\nmemory = '1M'",
    "[[listen]]\nunix = ''\n[[export]]\nmemory = '1M'",
    "[[listen]]\ntcp = 'localhost:http'\n[[export]]\nmemory = '1M'",
    "[[listen]]\ntcp = '127.0.0.1:5'\n[[listen]]\ntcp = '127.0.0.1:5'\n[[export]]\nmemory = '1M'",
    "[listen]\nunix = 'a'\n[[export]]\nmemory = '1M'",
    "[access]\nallow = ['10.0.0.1/8']\n[[export]]\nmemory = '1M'",
    "[access]\nallow-user = ['no-such-user']\n[[export]]\nmemory = '1M'",
    "[tls]\nverify-peer = true\n[[export]]\nmemory = '1M'",
    "[tls]\nmode = 'on'\ncertificates = 'folder'\nallow = ['*']\n[[export]]\nmemory = '1M'",
    "[tls]\nmode = 'require'\ncertificates = 'missing'\n[[export]]\nmemory = '1M'",
    "[tls]\npsk = 'keys.psk'\ncertificates = 'folder'\n[[export]]\nmemory = '1M'",
    "[server]\noldstyle = true\n[tls]\nmode = 'on'\ncertificates = 'folder'\n[[export]]\nmemory = '1M'",
    "[[export]]\nvolume = 's3://bucket/disk'\nfile = 'disk.img'",
    "[[export]]\nvolume = 's3://bucket/disk'\nvolume-memory = '31M'",
    "[[export]]\nmemory = '1M'\nvolume-memory = '1G'",
    "[[export]]\nvolume = 's3://bucket/disk'\nvolume-cache = 'folder:1M'",
    "[[export]]\nvolume = 's3://bucket/disk'\nvolume-cache = 'folder'",
    "[[export]]\nmemory = '1M'\nvolume-cache = 'folder:1G'",
    "[[export]]\nfile = 'disk.img'\n[[export]",
];

/// What the sources refuse and no line here shows: a part of the text, and why.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "make no sense here, as the sockets to listen on are handed over",
        "tests/serve/activation.rs",
    ),
    ("sockets to listen on are handed over by socket activation (LISTEN_FDS): add", "the same"),
    ("--take-over makes no sense here, as the sockets", "the same"),
    ("is one of the sockets that socket activation hands over", "the same"),
    ("--stdio serves the one client on standard input", "tests/serve/stdio.rs"),
    ("rules of access are about clients that connect", "the same"),
    ("no pre-shared keys: build it with", "another build"),
    ("to change export '", "tests/serve/exports.rs and the engine's reload"),
    (", a block device; say where to keep it by --record FILE", "tests/copy_resume.rs"),
    ("this program was built without volumes", "another build"),
    ("to serve a volume is to take it over", "tests/volume.rs"),
    ("without being asked, give --yes", "the same"),
    ("give a URI, or [ COMMAND ARGS ]", "clap asks for a word before"),
    ("--tls-psk takes the place of certificates", "clap says so before; the file's words are here"),
    ("an option for TLS can't be used", "a NUL or 4096 bytes: src/tls.rs"),
    (
        "a name can't be in a certificate",
        "shown by a name that is not ASCII, if its check lets it through",
    ),
];

/// The steps of the script: what is shown of them, and what is run.
fn steps() -> Vec<(String, String)> {
    let lines = LINES.iter().map(|line| ((*line).to_owned(), (*line).to_owned()));
    let configurations = CONFIGURATIONS.iter().map(|text| {
        let shown = format!("nbd serve --check --config nbd.toml <<END\n{text}\nEND");
        let run =
            format!("cat > nbd.toml <<'END'\n{text}\nEND\nnbd serve --check --config nbd.toml");
        (shown, run)
    });
    lines.chain(configurations).collect()
}

/// What is refused, and how, as in the file.
fn refusals() -> String {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in FILES {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let steps = steps();
    let mut script = String::from("exec 2>&1 </dev/null\n");
    for (index, (_, line)) in steps.iter().enumerate() {
        // What is not refused would serve for ever.
        let line = match line.as_str() {
            "nbd" => "nbd".into(),
            line => line.replacen("nbd ", "timeout 20 nbd ", 1),
        };
        let _a_string_takes_everything =
            write!(script, "echo '--- {index}'\n{line}\necho \"exit status $?\"\n");
    }
    let mut path = vec![nbd_binary().parent().expect("it is in a folder").to_owned()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(folder.path());
    command.env("PATH", std::env::join_paths(path).expect("plain names"));
    for variable in ["NBD_LOG", "LISTEN_PID", "LISTEN_FDS", "NOTIFY_SOCKET", "HOME"] {
        command.env_remove(variable);
    }
    let finished = run(command.env("NO_COLOR", "1"), LIMIT);
    let mut rest = finished.stdout.as_str();
    let mut text = String::new();
    for (index, (shown, _)) in steps.iter().enumerate() {
        let (_, after) = rest.split_once(&format!("--- {index}\n")).expect("each line is reached");
        let said =
            after.split_once(&format!("--- {}\n", index + 1)).map_or(after, |(said, _)| said);
        let said = said.replace(&folder.path().display().to_string(), "FOLDER");
        let said: Vec<&str> = said.lines().map(str::trim_end).collect();
        let _a_string_takes_everything = writeln!(text, "$ {shown}\n{}\n", said.join("\n"));
        rest = after;
    }
    text
}

/// String literals of an expression in source text, with their escapes undone as far as texts for people need.
fn literals(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut characters = source.chars().peekable();
    while let Some(c) = characters.next() {
        if c != '"' {
            continue;
        }
        let mut text = String::new();
        while let Some(c) = characters.next() {
            match c {
                '"' => break,
                '\\' => match characters.next() {
                    Some('\n') => while characters.next_if(|c| c.is_whitespace()).is_some() {},
                    Some(escaped) => text.push(escaped),
                    None => {}
                },
                c => text.push(c),
            }
        }
        found.push(text);
    }
    found
}

/// The arguments of a call that begins there.
fn arguments(source: &str) -> &str {
    let (mut depth, mut quoted, mut escaped) = (0_u32, false, false);
    for (index, c) in source.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted && depth == 0 => return &source[..index],
            ')' if !quoted => depth -= 1,
            _ => {}
        }
    }
    source
}

/// The longest part of a text that no value stands in.
fn longest(text: &str) -> &str {
    let parts = text.split('}').filter_map(|part| part.split('{').next());
    parts.max_by_key(|part| part.len()).unwrap_or_default().trim()
}

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            found.push((path.display().to_string(), code.to_owned()));
        }
    }
}

#[test]
#[cfg(feature = "tls")]
fn every_refusal_has_the_text_that_was_agreed_on() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/refusals.txt");
    check(file, &refusals());
}

/// A new refusal needs a line here, so that its text is looked at.
#[test]
fn every_refusal_in_the_sources_is_shown() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shown = std::fs::read_to_string(folder.join("tests/refusals.txt")).unwrap();
    let mut files = Vec::new();
    sources(&folder.join("src"), &mut files);
    let (mut missing, mut used, mut count) = (Vec::new(), BTreeSet::new(), 0);
    for (path, code) in &files {
        for call in ["Failure::usage(", "self.broken("] {
            for (start, _) in code.match_indices(call) {
                let own = arguments(&code[start + call.len()..]);
                for text in literals(own) {
                    let part = longest(&text);
                    if part.len() < 20 {
                        continue;
                    }
                    count += 1;
                    let elsewhere = ELSEWHERE.iter().position(|(known, _)| text.contains(known));
                    used.extend(elsewhere);
                    if elsewhere.is_none() && !shown.contains(part) {
                        missing.push(format!("{path}: {part}"));
                    }
                }
            }
        }
    }
    assert!(count > 40, "{count}");
    assert!(
        missing.is_empty(),
        "add a line to LINES, or say in ELSEWHERE where they are:\n{}",
        missing.join("\n")
    );
    let unused = (0..ELSEWHERE.len()).filter(|index| !used.contains(index));
    let unused: Vec<_> = unused.map(|index| ELSEWHERE[index].0).collect();
    assert!(unused.is_empty(), "no source has these any more: {unused:?}");
}
