#include "bundle.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <array>
#include <future>
#include <set>
#include <thread>
#include <vector>

#include "digest.h"
#include "error.h"
#include "text.h"

namespace cpuc {
namespace {

const std::string manifest_name = "extra/manifest.json", signature_name = "extra/signature.json";
constexpr uint64_t max_manifest = 4 << 20, max_extra = 256 << 20;
// In writing, members of this size begin on a page.
constexpr uint64_t large_member = 256 << 10;

// Whether a member holds numbers and nothing else, by where TorchScript keeps tensors. What is behind the end of a pickle, or
// commented out, can be as large.
bool is_tensor(const std::string& name) { return name.rfind("constants/", 0) == 0 || name.rfind("data/", 0) == 0; }

std::string read_member(const File& file, const Member& member, uint64_t most) {
  if (member.size > most)
    throw Error(Kind::bundle, file.path() + ": " + member.name.substr(member.name.find('/') + 1) + " is larger than " +
                                  std::to_string(most) + " bytes: the bundle is damaged");
  return file.read(member.offset, member.size);
}

// The first name, in order, that only one of the two has.
std::optional<std::string> difference(const Manifest& manifest, const std::map<std::string, Member>& members) {
  std::set<std::string> only;
  for (const auto& [name, digest] : manifest.members) {
    if (members.count(name) == 0 || name == manifest_name || name == signature_name) only.insert(name);
  }
  for (const auto& [name, member] : members) {
    if (name != manifest_name && name != signature_name && manifest.members.count(name) == 0) only.insert(name);
  }
  return only.empty() ? std::nullopt : std::optional<std::string>(*only.begin());
}

}  // namespace

Bundle Bundle::open(const std::string& path, const std::optional<std::string>& trust) {
  // Its default configuration is a file of the machine, which may name libraries to load.
  OPENSSL_init_crypto(OPENSSL_INIT_NO_LOAD_CONFIG, nullptr);
  Bundle bundle;
  bundle.file = std::make_unique<File>(path);
  const std::vector<Member> list = list_members(*bundle.file, manifest_name);
  for (const Member& member : list) bundle.members[member.name] = member;
  const std::string text = read_member(*bundle.file, bundle.members.at(manifest_name), max_manifest);
  const auto signed_ = bundle.members.find(signature_name);
  std::optional<std::string> own;
  if (signed_ != bundle.members.end()) own = read_member(*bundle.file, signed_->second, max_signature);
  try {
    std::optional<Signature> signature;
    if (own) signature = Signature::from_json(*own);
    if (trust) check_signature(signature, text, *trust);
    bundle.manifest = Manifest::from_json(text);
  } catch (const Error& error) {
    if (error.kind != Kind::bundle) throw;
    throw Error(Kind::bundle, path + ": " + error.what());
  }
  if (const auto odd = difference(bundle.manifest, bundle.members))
    throw Error(Kind::bundle, path + ": member " + in_quotes(*odd) + " is not in both the archive and the manifest: do not use it");
  if (list[list.size() - (own ? 2 : 1)].name != manifest_name || (own && list.back().name != signature_name))
    throw Error(Kind::bundle, path + ": member '" + manifest_name + "' is not the last one: do not use this file");
  return bundle;
}

std::string Bundle::read(const std::string& name) const {
  const auto member = members.find("extra/" + name);
  if (member == members.end())
    throw Error(Kind::bundle, file->path() + ": member " + in_quotes("extra/" + name) + " is missing: compile the model again");
  std::string data = read_member(*file, member->second, max_extra);
  compare(member->second, sha256(data));
  return data;
}

void Bundle::compare(const Member& member, const std::string& digest) const {
  if (digest != manifest.members.at(member.name))
    throw Error(Kind::bundle, file->path() + ": member " + in_quotes(member.name) +
                                  " does not match its SHA-256: the file was damaged or altered; copy it again");
}

void Bundle::check(const std::vector<const Member*>& some) const {
  for (const Member* member : some) compare(*member, sha256(*file, *member));
}

void Bundle::check_digests() const {
  Checks checks = start_checking({});
  checks.graph.get();
  checks.finish();
}

Checks Bundle::start_checking(const LoadOptions& options) const {
  if (options.trust && !options.check_digests)
    throw Error(Kind::input, "a signature covers digests: with a trusted key they have to be checked");
  std::vector<const Member*> small;
  std::array<std::vector<const Member*>, 2> large;
  std::array<uint64_t, 2> totals{};
  // One thread does where the other core has libraries to open and weights to load meanwhile.
  const size_t threads = std::thread::hardware_concurrency() > 2 ? 2 : 1;
  for (const auto& [name, digest] : manifest.members) {
    const Member& member = members.at(name);
    if (!options.check_digests) continue;
    if (member.size < large_member || !is_tensor(name)) {
      small.push_back(&member);
      continue;
    }
    const size_t lesser = threads > 1 && totals[1] < totals[0] ? 1 : 0;
    large[lesser].push_back(&member), totals[lesser] += member.size;
  }
  const auto begin = [this](std::vector<const Member*> some) {
    return std::async(std::launch::async, [this, some = std::move(some)] { check(some); });
  };
  Checks checks{begin(std::move(small)), {}, options.trust.has_value()};
  checks.weights = std::async(std::launch::async, [begin, this, large = std::move(large)] {
    auto other = begin(large[1]);
    check(large[0]);
    other.get();
  });
  return checks;
}

}  // namespace cpuc
