//! Steps the clock of single programs. `CLOCK_REALTIME` belongs to the whole machine; no namespace has
//! its own. But programs read it through code that the kernel maps into each process (vdso(7)). We
//! replace that code in the process by a system call that adds some seconds to the result. Programs
//! that start later have the time of the machine.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use object::read::elf::ElfFile64;
use object::{Object, ObjectSymbol};

/// What libraries call, under this name on x86-64.
const READ_CLOCK: &str = "__vdso_clock_gettime";
/// How long a program may take to stop.
const LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(1);

/// Sets the clock of a program, if it still runs, to the time of the machine plus `seconds`.
pub(super) fn set(pid: u32, seconds: i64) -> Result<()> {
    let outcome = write_code(pid, seconds);
    if outcome.is_err() && !Path::new(&format!("/proc/{pid}")).exists() {
        return Ok(());
    }
    outcome.with_context(|| format!("set the clock of process {pid}"))
}

/// Moves the times of a folder's files by so many seconds. A node that has just started may not have
/// the folder yet.
pub(super) fn shift_files(folder: &Path, seconds: i64) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("list {}", folder.display()))?,
    };
    let by = Duration::from_secs(seconds.unsigned_abs());
    for entry in entries {
        let path = entry?.path();
        let shift = || {
            let file = File::open(&path)?;
            let written = file.metadata()?.modified()?;
            file.set_modified(if seconds < 0 {
                written - by
            } else {
                written + by
            })
        };
        match shift() {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("date {}", path.display()));
            }
            // its pod has just gone
            _ => {}
        }
    }
    Ok(())
}

fn write_code(pid: u32, seconds: i64) -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the code is known for x86-64 only"
    );
    let memory = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/mem"))
        .context("open its memory")?;
    let begun = Instant::now();
    let place = place(pid, &memory)?;
    let code = code(seconds);
    ensure!(
        place.end - place.start >= code.len() as u64,
        "no room for the code"
    );
    let mut there = vec![0; code.len()];
    memory
        .read_exact_at(&mut there, place.start)
        .context("read the code that reads the clock")?;
    // true after an earlier call, whatever the seconds were
    let ours = there.starts_with(&SYSTEM_CALL);
    loop {
        let stopped = Stopped::stop(pid)?;
        // a thread inside the old code would continue in the middle of the new one
        if ours || !stopped.counters()?.iter().any(|at| place.contains(at)) {
            return memory
                .write_all_at(&code, place.start)
                .context("write over the code that reads the clock");
        }
        drop(stopped);
        ensure!(
            begun.elapsed() < LIMIT,
            "a thread is always inside the code that reads the clock"
        );
        thread::sleep(POLL);
    }
}

/// Where the code is that reads the clock.
fn place(pid: u32, memory: &File) -> Result<std::ops::Range<u64>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("read its maps")?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"));
    let range = line.and_then(|line| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(start)?, number(end)?))
    });
    let (start, end) = range.context("it has no vdso")?;
    let mut image = vec![0; usize::try_from(end - start)?];
    memory
        .read_exact_at(&mut image, start)
        .context("read the vdso")?;
    let image: ElfFile64<'_> = ElfFile64::parse(&*image)?;
    let mut symbols = image.dynamic_symbols();
    let symbol = symbols.find(|symbol| symbol.name() == Ok(READ_CLOCK));
    let symbol = symbol.with_context(|| format!("the kernel has no {READ_CLOCK}"))?;
    let at = start + symbol.address();
    Ok(at..at + symbol.size())
}

/// The beginning of `clock_gettime(clock, time)`.
const SYSTEM_CALL: [u8; 13] = [
    0xb8, 0xe4, 0, 0, 0, // mov eax, SYS_clock_gettime
    0x0f, 0x05, // syscall
    0x85, 0xff, // test edi, edi: CLOCK_REALTIME is 0
    0x75, 0x0d, // jnz to the end
    0x48, 0xb9, // movabs rcx, seconds
];

/// The rest of it, after the seconds.
const ADD: [u8; 4] = [
    0x48, 0x01, 0x0e, // add [rsi], rcx: time->tv_sec
    0xc3, // ret
];

/// The system call, which adds the seconds if the clock is `CLOCK_REALTIME`.
fn code(seconds: i64) -> Vec<u8> {
    [&SYSTEM_CALL[..], &seconds.to_le_bytes(), &ADD].concat()
}

/// A process that is stopped until this is dropped.
struct Stopped(u32);

impl Stopped {
    fn stop(pid: u32) -> Result<Self> {
        let stopped = Self(pid);
        stopped.signal(Signal::SIGSTOP).context("stop it")?;
        let begun = Instant::now();
        loop {
            let states = stopped.of_threads("stat", |stat| {
                let (_, rest) = stat.rsplit_once(')')?;
                rest.trim_start().chars().next()
            })?;
            if states.iter().all(|state| *state == 'T') {
                return Ok(stopped);
            }
            if begun.elapsed() > LIMIT {
                bail!("it does not stop: {states:?}");
            }
            thread::sleep(POLL);
        }
    }

    /// The program counter of each thread.
    fn counters(&self) -> Result<Vec<u64>> {
        self.of_threads("syscall", |line| {
            let counter = line.split_whitespace().next_back()?.strip_prefix("0x")?;
            u64::from_str_radix(counter, 16).ok()
        })
    }

    fn of_threads<T>(&self, file: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>> {
        let folder = format!("/proc/{}/task", self.0);
        let threads = fs::read_dir(&folder).with_context(|| format!("list {folder}"))?;
        let mut found = Vec::new();
        for thread in threads {
            let path = thread?.path().join(file);
            match fs::read_to_string(&path) {
                Ok(text) => {
                    let value = parse(&text);
                    found.push(
                        value.with_context(|| format!("{} contains {text}", path.display()))?,
                    );
                }
                // that thread has just ended
                Err(_) if !path.exists() => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("read {}", path.display()));
                }
            }
        }
        Ok(found)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.0)?), signal)?)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // a process that has ended needs no signal
        let _ = self.signal(Signal::SIGCONT);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Stdio};
    use std::time::SystemTime;

    use super::*;

    /// A process of which one thread reads the clock most of the time.
    struct ClockReader(Child);

    impl ClockReader {
        fn start() -> Self {
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["chaos::clock::tests::prints_its_clock", "--exact"])
                .args(["--ignored", "--nocapture"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn();
            Self(child.unwrap())
        }

        /// How many seconds its real clock is ahead of ours, and the time of its monotonic clock.
        fn read(&mut self) -> (i64, u64) {
            self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
            let mut lines = BufReader::new(self.0.stdout.as_mut().unwrap()).lines();
            let line = lines.find_map(|line| Some(line.unwrap().strip_prefix("time ")?.to_owned()));
            let line = line.unwrap();
            let (real, steady) = line.split_once(' ').unwrap();
            let ahead = real.parse::<i64>().unwrap() - seconds(SystemTime::now());
            (ahead, steady.parse().unwrap())
        }
    }

    impl Drop for ClockReader {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    fn seconds(time: SystemTime) -> i64 {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        i64::try_from(since.as_secs()).unwrap()
    }

    #[test]
    #[ignore = "a process that others start"]
    fn prints_its_clock() {
        thread::spawn(|| {
            loop {
                std::hint::black_box(SystemTime::now());
                // so that the thread is sometimes outside of the code that reads the clock
                (0..1000).for_each(|_| std::hint::spin_loop());
            }
        });
        let begun = Instant::now();
        for line in std::io::stdin().lines() {
            line.unwrap();
            let real = seconds(SystemTime::now());
            println!("\ntime {real} {}", begun.elapsed().as_secs());
        }
    }

    #[test]
    fn a_program_reads_the_time_that_was_set_and_goes_on() {
        let mut reader = ClockReader::start();
        let near = |ahead: i64, wanted: i64| (ahead - wanted).abs() <= 1;
        let (ahead, _) = reader.read();
        assert!(near(ahead, 0), "{ahead}");
        for wanted in [86_400, -3_000, 0, 7] {
            set(reader.0.id(), wanted).unwrap();
            let (ahead, steady) = reader.read();
            assert!(near(ahead, wanted), "{ahead}, not {wanted}");
            assert!(steady < 60, "{steady}");
        }
    }

    #[test]
    fn setting_the_clock_of_an_ended_process_does_nothing() {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        set(child.id(), 1).unwrap();
    }
}
