//! The pipeline as people start it: real processes over a bus of their own.

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Place, report, stderr};
use kdbus_examples::block::{Block, FRAMES, Frame};
use kdbus_examples::control::Schedule;
use kdbus_examples::equaliser::Equaliser;
use kdbus_examples::piece::{Piece, play_without_bus};
use kdbus_examples::wav::{Depth, Format, WavWriter};
use rustix::process::{Pid, Signal, kill_process};

const PIPELINE: &str = env!("CARGO_BIN_EXE_audio-pipeline");

/// How long anything may take that does not take long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The first `blocks` blocks of the built-in piece as a file, and half a block more.
fn piece(place: &Place, name: &str, blocks: u64) -> PathBuf {
    let path = place.path(name);
    let mut writer = WavWriter::create(&path, Format { depth: Depth::Float32, channels: 2 }).unwrap();
    let (mut piece, mut block) = (Piece::open(None).unwrap(), Block::new(0));
    for at in 0..=blocks {
        assert!(piece.next_block(&mut block).unwrap());
        if at == blocks {
            block.set_last(FRAMES / 2);
        }
        writer.write(&block).unwrap();
    }
    writer.finish().unwrap();
    path
}

/// What is in the directory, sorted.
fn names(place: &Place) -> Vec<String> {
    let entries = fs::read_dir(place.directory()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A child of the process `parent` with `word` as its second argument, and `more` as the third if there is one.
fn child_of(parent: u32, word: &str, more: Option<&str>) -> Option<i32> {
    let children = |directory: &Path| -> Option<i32> {
        let pid = directory.file_name()?.to_str()?.parse().ok()?;
        let stat = fs::read_to_string(directory.join("stat")).ok()?;
        let ppid: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let line = fs::read(directory.join("cmdline")).ok()?;
        let mut words = line.split(|byte| *byte == 0).skip(1);
        let is_it = ppid == parent
            && words.next() == Some(word.as_bytes())
            && more.is_none_or(|more| words.next() == Some(more.as_bytes()));
        is_it.then_some(pid)
    };
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| children(&entry.path()))
}

fn wait_for<R>(what: &str, mut look: impl FnMut() -> Option<R>) -> R {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what} did not come about");
        sleep(Duration::from_millis(2));
    }
}

fn send(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn is_alive(pid: i32) -> bool {
    // A process that has ended and that nobody has waited for has no command line.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// Waits for `pipeline` to end, and kills it if it does not.
fn ended(mut pipeline: Child) -> Output {
    let until = Instant::now() + PATIENCE;
    while pipeline.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            pipeline.kill().unwrap();
        }
        sleep(Duration::from_millis(5));
    }
    pipeline.wait_with_output().unwrap()
}

/// All samples that a run without any bus writes, as a file.
fn expected(place: &Place, input: &Path) -> Vec<u8> {
    let path = place.path("expected.wav");
    let mut piece = Piece::open(Some(input)).unwrap();
    let schedule = Schedule::demo(piece.blocks());
    let mut writer = WavWriter::create(&path, piece.format()).unwrap();
    play_without_bus(&mut piece, &mut Equaliser::default(), schedule, |block| writer.write(block)).unwrap();
    writer.finish().unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(path).unwrap();
    bytes
}

#[test]
fn a_fast_run_equals_one_without_a_bus_to_the_bit() {
    let place = Place::new(PIPELINE);
    let input = piece(&place, "in.wav", 2_000);
    let output = place.path("out.wav");
    let run = place
        .pipeline()
        .args(["--fast", "--json", "-i"])
        .arg(&input)
        .arg("-o")
        .arg(&output)
        .output()
        .unwrap();
    let report = report(&run);
    assert!(fs::read(&output).unwrap() == expected(&place, &input), "the samples differ");
    let hop = |name: &str| {
        report["hops"].as_array().unwrap().iter().find(|hop| hop["name"] == name).unwrap().clone()
    };
    for name in ["source → equaliser", "equaliser → sink", "source → sink"] {
        assert_eq!(hop(name)["messages"], 2_001);
    }
    let controls = hop("controller → equaliser");
    assert_eq!(controls["controls"], Schedule::demo(2_001).count());
    assert!(controls["blocks_overtaken"]["max"].as_u64().unwrap() > 0, "nothing was overtaken");
    for count in ["dropped_messages", "lost_blocks", "late_controls", "missing_controls", "ignored_messages"]
    {
        assert_eq!(report[count], 0, "{count}");
    }
    assert!(stderr(&run).contains("no bus is running: started one"), "{}", stderr(&run));
    // The tree of the bus is gone with it.
    let names = names(&place);
    assert!(names.iter().all(|name| !name.contains("part")), "{names:?}");
    assert!(!place.path("bus/0-system").exists() && !place.path("bus/control").exists());
}

#[test]
fn a_run_in_time_plays_every_block_and_its_controls_overtake_the_queue() {
    let place = Place::new(PIPELINE);
    let input = piece(&place, "in.wav", 600);
    let output = place.path("out.wav");
    let run = place
        .pipeline()
        .args(["--realtime", "--blocks-ahead", "100", "--json", "-i"])
        .arg(&input)
        .arg("-o")
        .arg(&output)
        .output()
        .unwrap();
    let report = report(&run);
    assert_eq!(Piece::open(Some(&output)).unwrap().frames(), 600 * 64 + 32);
    assert_eq!(report["dropped_messages"], 0);
    assert_eq!(report["missing_controls"], 0);
    let hops = report["hops"].as_array().unwrap();
    let controls = hops.iter().find(|hop| hop["name"] == "controller → equaliser").unwrap();
    assert!(controls["blocks_overtaken"]["max"].as_u64().unwrap() >= 40, "{controls}");
    // How late this machine is today decides whether a control was; if none was, the samples are the known ones.
    if report["late_controls"] == 0 {
        assert!(fs::read(&output).unwrap() == expected(&place, &input), "the samples differ");
    }
}

#[test]
fn a_killed_stage_is_named_and_takes_the_others_with_it() {
    let place = Place::new(PIPELINE);
    let input = piece(&place, "in.wav", 6_000);
    for stage in ["source", "equaliser", "sink", "controller"] {
        let pipeline =
            place.pipeline().arg("-i").arg(&input).arg("-o").arg(place.path("out.wav")).spawn().unwrap();
        let find = |stage: &str| child_of(pipeline.id(), "as-stage", Some(stage));
        let victim = wait_for(stage, || find(stage));
        let others = ["source", "equaliser", "sink", "controller"]
            .into_iter()
            .filter(|other| *other != stage)
            .map(|other| wait_for(other, || find(other)))
            .chain([wait_for("the bus", || child_of(pipeline.id(), "as-bus", None))])
            .collect::<Vec<_>>();
        // The sink makes its file before it joins; by then all are on their way.
        wait_for("the output", || place.path("out.wav.part").exists().then_some(()));
        send(victim, Signal::KILL);
        let output = ended(pipeline);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let text = stderr(&output);
        assert!(text.contains(&format!("audio-pipeline: the {stage}: was killed by SIGKILL")), "{text}");
        assert!(output.stdout.is_empty());
        assert!(others.iter().all(|pid| !is_alive(*pid)), "a stage is left over");
        assert!(!place.path("out.wav").exists() && !place.path("out.wav.part").exists());
    }
}

#[test]
fn an_interrupt_ends_the_piece_in_order() {
    let place = Place::new(PIPELINE);
    let input = piece(&place, "in.wav", 15_000);
    let output = place.path("out.wav");
    let pipeline =
        place.pipeline().arg("--json").arg("-i").arg(&input).arg("-o").arg(&output).spawn().unwrap();
    // Something has been written once the file has more than the header.
    let part = place.path("out.wav.part");
    wait_for("sound", || part.metadata().is_ok_and(|data| data.len() > 20_000).then_some(()));
    send(i32::try_from(pipeline.id()).unwrap(), Signal::INT);
    let ended = ended(pipeline);
    assert_eq!(ended.status.code(), Some(130), "{}", stderr(&ended));
    let report: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    let played = report["hops"][2]["messages"].as_u64().unwrap();
    let frames = Piece::open(Some(&output)).unwrap().frames();
    assert_eq!(frames, (played + report["lost_blocks"].as_u64().unwrap()) * FRAMES as u64);
    assert!(frames < 15_000 * FRAMES as u64);
    assert!(!place.path("bus/control").exists() && !part.exists());
}

#[test]
fn a_killed_coordinator_leaves_no_process_behind() {
    let place = Place::new(PIPELINE);
    let input = piece(&place, "in.wav", 15_000);
    let mut pipeline = place.pipeline().arg("-i").arg(&input).spawn().unwrap();
    let parent = pipeline.id();
    let mut pids = vec![wait_for("the bus", || child_of(parent, "as-bus", None))];
    for stage in ["source", "equaliser", "sink", "controller"] {
        pids.push(wait_for(stage, || child_of(parent, "as-stage", Some(stage))));
    }
    pipeline.kill().unwrap();
    assert_eq!(pipeline.wait().unwrap().signal(), Some(9));
    wait_for("the end of all", || pids.iter().all(|pid| !is_alive(*pid)).then_some(()));
    wait_for("the end of the tree", || (!place.path("bus/control").exists()).then_some(()));
}

#[test]
fn a_bus_that_runs_is_used_and_stays() {
    let place = Place::new(PIPELINE);
    let uid = rustix::process::geteuid().as_raw();
    let config = kdbusd::config::Config::new(uid, place.path("bus"));
    let running = kdbusd::Running::start(&config).unwrap();
    let input = piece(&place, "in.wav", 200);
    let output = place.pipeline().args(["--fast", "--json", "-i"]).arg(&input).output().unwrap();
    assert_eq!(report(&output)["hops"][0]["messages"], 201);
    assert!(stderr(&output).contains("playing over"), "{}", stderr(&output));
    running.stop().unwrap();
}

#[test]
fn inputs_that_cannot_be_played_are_refused_before_anything_starts() {
    let place = Place::new(PIPELINE);
    let refused = |arguments: &[&Path]| {
        let output = place.pipeline().arg("-i").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(!place.path("bus").exists());
        stderr(&output)
    };
    let missing = place.path("nowhere.wav");
    let text = refused(&[&missing]);
    assert!(text.starts_with("audio-pipeline: ") && text.contains("nowhere.wav"), "{text}");

    let words = place.path("words.wav");
    fs::write(&words, "this is no sound at all, only words, but enough of them").unwrap();
    let text = refused(&[&words]);
    assert!(text.contains("words.wav") && text.to_lowercase().contains("wav file"), "{text}");

    let slow = place.path("slow.wav");
    let spec = hound::WavSpec {
        channels: 2,
        sample_rate: 44_100,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::create(&slow, spec).unwrap();
    (0..128i16).for_each(|sample| writer.write_sample(sample).unwrap());
    writer.finalize().unwrap();
    let text = refused(&[&slow]);
    assert!(text.contains("44100") && text.contains("48000"), "{text}");

    let good = piece(&place, "good.wav", 4);
    let text = refused(&[&good, Path::new("-o"), &good]);
    assert!(text.contains("good.wav"), "{text}");
    assert_eq!(Piece::open(Some(&good)).unwrap().blocks(), 5);
}

#[test]
fn an_output_that_cannot_be_written_is_the_sinks_error() {
    let place = Place::new(PIPELINE);
    let input = piece(&place, "in.wav", 50);
    let output = place
        .pipeline()
        .args(["--fast", "-i"])
        .arg(&input)
        .args(["-o", "/proc/no/out.wav"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("audio-pipeline: the sink: "), "{}", stderr(&output));
}

#[test]
fn silence_and_the_shortest_pieces_come_to_their_end() {
    let place = Place::new(PIPELINE);
    for frames in [0usize, 1, 64, 65] {
        let path = place.path("short.wav");
        let format = Format { depth: Depth::Pcm16, channels: 1 };
        let mut writer = WavWriter::create(&path, format).unwrap();
        for at in 0..frames.div_ceil(FRAMES) {
            let mut block = Block::new(at as u64);
            block.frames_mut().fill(Frame::new(0.5, 0.5));
            if (at + 1) * FRAMES >= frames {
                block.set_last(frames - at * FRAMES);
            }
            writer.write(&block).unwrap();
        }
        writer.finish().unwrap();
        let output = place.path("out.wav");
        let run =
            place.pipeline().args(["--fast", "--json", "-i"]).arg(&path).arg("-o").arg(&output).output();
        report(&run.unwrap());
        assert_eq!(Piece::open(Some(&output)).unwrap().frames(), frames as u64);
        assert!(fs::read(&output).unwrap() == expected(&place, &path));
    }
}

#[cfg(not(feature = "sound-card"))]
#[test]
fn a_program_without_sound_cards_says_how_to_have_them() {
    let place = Place::new(PIPELINE);
    for arguments in [&["--device", "default"][..], &["--list-devices"]] {
        let output = place.pipeline().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = stderr(&output);
        assert!(text.contains("--features sound-card") && text.contains("libasound2-dev"), "{text}");
        assert!(!place.path("bus").exists());
    }
}

/// ALSA's own devices, which are no cards: one writes what it is given into a file, one forgets it.
#[cfg(feature = "sound-card")]
#[test]
fn a_sound_card_is_given_every_sample() {
    let place = Place::new(PIPELINE);
    let (config, raw, output) = (place.path("alsa.conf"), place.path("card.raw"), place.path("out.wav"));
    let text = format!(
        "pcm.!default {{ type file slave.pcm {{ type null }} file \"{}\" format raw hint {{ show on }} }}\n",
        raw.display()
    );
    fs::write(&config, text).unwrap();
    let pipeline = || {
        let mut pipeline = place.pipeline();
        pipeline.env("ALSA_CONFIG_PATH", &config);
        pipeline
    };
    let list = pipeline().arg("--list-devices").output().unwrap();
    assert!(String::from_utf8_lossy(&list.stdout).starts_with("default "), "{}", stderr(&list));

    let input = piece(&place, "in.wav", 600);
    let run =
        pipeline().args(["--device", "default", "--json", "-i"]).arg(&input).arg("-o").arg(&output).output();
    let run = run.unwrap();
    report(&run);
    let text = stderr(&run);
    assert!(text.contains("the card played 38432 frames") && text.contains(" 0 had no room"), "{text}");
    // Where the card had nothing to play, it was given silence.
    let mut piece = Piece::open(Some(&output)).unwrap();
    let (mut block, mut written) = (Block::new(0), Vec::new());
    while piece.next_block(&mut block).unwrap() {
        written.extend(block.sounding().iter().flat_map(|frame| [frame.left(), frame.right()]));
        if block.is_last() {
            break;
        }
    }
    let bytes = fs::read(&raw).unwrap();
    let mut played: Vec<_> =
        bytes.as_chunks::<4>().0.iter().map(|sample| f32::from_le_bytes(*sample)).collect();
    played.retain(|sample| *sample != 0.0);
    written.retain(|sample| *sample != 0.0);
    assert!(written.len() > 10_000 && played == written, "the samples differ");

    let run = pipeline().args(["--device", "another", "-i"]).arg(&input).output().unwrap();
    let text = stderr(&run);
    assert!(text.contains("the sink: no sound card is called 'another'; there are: default"), "{text}");
}
