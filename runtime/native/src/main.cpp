// cpuc-run: answers from an artifact, without Python.
#include <dlfcn.h>
#include <malloc.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <iostream>
#include <set>
#include <thread>

#include "answer.h"
#include "error.h"
#include "files.h"
#include "text.h"

namespace {

struct Arguments {
  std::string bundle, input, output = "-";
  cpuc::LoadOptions load;
  bool raw = false, force = false, check = false;
  cpuc::Options options;
};

// Ends at once: the library that is being opened is of no use any more.
[[noreturn]] void fail(const std::string& message) {
  std::cerr << "cpuc: " << cpuc::printable(message) << std::endl;
  std::_Exit(1);
}

std::string dashed(std::string name) {
  std::replace(name.begin(), name.end(), '_', '-');
  return "--" + name;
}

// The options of every task, each once.
void add_task_options(CLI::App& program, cpuc::Options& options) {
  using Kind = cpuc::OptionSpec::Kind;
  std::set<std::string> added;
  for (const cpuc::TaskType& type : cpuc::task_types()) {
    for (const cpuc::OptionSpec& spec : type.options) {
      if (!added.insert(spec.name).second) continue;
      const auto set = [&options, name = spec.name](const auto& value) { options.given[name] = value; };
      if (spec.kind == Kind::flag) program.add_flag_callback(dashed(spec.name), [set] { set(true); }, spec.help)->group("Options of tasks");
      if (spec.kind == Kind::number) program.add_option_function<int64_t>(dashed(spec.name), set, spec.help)->group("Options of tasks");
      if (spec.kind != Kind::text) continue;
      CLI::Option* option = program.add_option_function<std::string>(dashed(spec.name), set, spec.help)->group("Options of tasks");
      if (!spec.choices.empty()) option->check(CLI::IsMember(spec.choices));
    }
  }
}

void add_options(CLI::App& program, Arguments& given) {
  program.add_option("BUNDLE", given.bundle, "The artifact.")->required();
  program.add_option("-i,--input", given.input, "JSON, or JSON Lines; - is standard input.");
  program.add_option("-o,--output", given.output, "Where answers go; - is standard output.")->capture_default_str();
  program.add_flag("--force", given.force, "Replace the output if it exists.");
  program.add_flag("--raw", given.raw, "Named tensors in (JSON), the model's outputs out.");
  program.add_flag("--check", given.check, "Check and load the bundle, and answer nothing.");
  program.add_option("--trust", given.load.trust, "Answer only if the bundle is signed by this public key (PEM).");
  program.add_flag("--check-digests,!--no-check-digests", given.load.check_digests, "Compare the bundle with its SHA-256 digests first.  [default: yes]");
  add_task_options(program, given.options);
}

// How many records are done, on a terminal and after two seconds.
class Counter {
 public:
  explicit Counter(size_t total) : total_(total), shown_(::isatty(STDERR_FILENO) != 0) {}
  ~Counter() {
    if (written_) std::cerr << "\r\033[K";
  }
  Counter(const Counter&) = delete;
  Counter& operator=(const Counter&) = delete;

  void advance(size_t count) {
    done_ += count;
    const auto now = std::chrono::steady_clock::now();
    if (!shown_ || now - begin_ < std::chrono::seconds(2) || now - last_ < std::chrono::milliseconds(100)) return;
    last_ = now, written_ = true;
    std::cerr << "\r" << done_ << " of " << total_ << " records\033[K" << std::flush;
  }

 private:
  size_t total_, done_ = 0;
  bool shown_, written_ = false;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now(), last_ = begin_;
};

// libcpuc, being opened on a thread of its own, which nobody waits for if there is nothing to answer.
std::future<cpuc::Answer> open_library() {
  std::packaged_task<cpuc::Answer()> open([] {
    void* library = ::dlopen("libcpuc.so", RTLD_NOW);
    void* found = library == nullptr ? nullptr : ::dlsym(library, cpuc::answer_name);
    if (found == nullptr) throw cpuc::Error(cpuc::Kind::bundle, std::string("libcpuc cannot be loaded: ") + ::dlerror());
    return reinterpret_cast<cpuc::Answer>(found);
  });
  auto opened = open.get_future();
  std::thread(std::move(open)).detach();
  return opened;
}

void run(const Arguments& given) {
  if (given.raw && !given.options.given.empty())
    throw cpuc::Error(cpuc::Kind::input, dashed(given.options.given.begin()->first) + " has no meaning with --raw");
  for (const std::string& name : {given.input, given.output}) {
    if (given.raw && std::filesystem::path(name).extension() == ".npz")
      throw cpuc::Error(cpuc::Kind::input, name + ": .npz archives are for 'cpuc run': give and take JSON");
  }
  if (given.output != "-") cpuc::check_writable(given.output, given.force);
  const cpuc::Bundle bundle = cpuc::Bundle::open(given.bundle, given.load.trust);
  std::future<cpuc::Answer> library = open_library();
  cpuc::Request request{bundle, bundle.start_checking(given.load), "", given.input == "-" ? "standard input" : given.input, {}, given.options, {}};
  if (!given.check) request.data = cpuc::read_input(given.input);
  // Input that makes no sense is told before the model is loaded.
  if (!given.check && !given.raw) request.records = cpuc::parse_records(request.data, request.source);
  if (!given.check && given.raw && request.data.empty()) cpuc::parse_input(request.data, request.source);
  Counter counter(request.records ? request.records->values.size() : 0);
  request.progress = [&](size_t count) { counter.advance(count); };
  std::string answer;
  library.get()(request, answer);
  if (!given.check) cpuc::write_output(given.output, answer, given.force);
}

}  // namespace

int main(int count, char** arguments) {
  CLI::App program(
      "Answers the records in a file from an artifact of 'cpuc compile', as 'cpuc run' does.\n\n"
      "Examples:\n"
      "  cpuc-run model.pt --input q.json\n"
      "  cpuc-run model.pt --input questions.jsonl --output answers.jsonl --top-k 3\n"
      "  cpuc-run model.pt --raw --input tensors.json --trust key.pub.pem",
      "cpuc-run");
  Arguments given;
  add_options(program, given);
  try {
    program.parse(count, arguments);
    if (given.input.empty() && !given.check) throw CLI::RequiredError("--input");
  } catch (const CLI::ParseError& error) {
    return program.exit(error) == 0 ? 0 : 2;
  }
  try {
    run(given);
    // What the process holds goes with it: freeing it piece by piece would take longer than a short answer.
    std::_Exit(0);
  } catch (const cpuc::Error& error) {
    fail(error.what());
  } catch (const std::bad_alloc&) {
    fail("out of memory");
  } catch (const std::exception& error) {
    // torch says first where in the graph it was, and last what it was.
    std::string message = error.what();
    while (!message.empty() && message.back() == '\n') message.pop_back();
    const size_t end = message.find('\n');
    const bool in_graph = message.substr(0, end).find("failed in the TorchScript interpreter") != std::string::npos;
    fail("unexpected error: " + (in_graph ? message.substr(message.rfind('\n') + 1) : message.substr(0, end)));
  }
}
