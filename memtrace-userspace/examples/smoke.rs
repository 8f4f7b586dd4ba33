fn main() {
    let r = memtrace_userspace::live::loader::Kernel::load(memtrace_userspace::live::loader::Capacity{ring_bytes:1<<24,rows:1<<20,buckets:1<<18,modules:4096}, 100_000_000);
    match r { Ok(_) => println!("loaded"), Err(e) => { let mut e: Option<&dyn std::error::Error> = Some(&e); while let Some(x)=e { println!("{x}"); e=x.source(); } } }
}
