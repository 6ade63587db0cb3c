#include "tests/faults/disk_model.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <functional>

namespace te::faults {
namespace {

namespace fs = std::filesystem;

// Of `path` below `root`; nothing for a path elsewhere.
std::optional<fs::path> below(const std::string& root, const std::string& path) {
  const fs::path relative = fs::path(path).lexically_normal().lexically_relative(root);
  if (relative.empty() || *relative.begin() == "..") return std::nullopt;
  return relative;
}

void copy_prefix(const std::string& from, const std::string& to, uint64_t bytes) {
  fs::copy_file(from, to);
  if (bytes < fs::file_size(to)) fs::resize_file(to, bytes);
}

}  // namespace

DiskModel::DiskModel(std::string root, std::string links)
    : root_(std::move(root)), links_(std::move(links)) {
  fs::create_directories(links_);
  adopt(add_node(true), root_);
}

int DiskModel::add_node(bool is_directory) {
  nodes_.emplace_back();
  nodes_.back().is_directory = is_directory;
  return static_cast<int>(nodes_.size()) - 1;
}

void DiskModel::adopt(int directory, const std::string& path) {
  for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
    const int node = add_node(entry.is_directory());
    const std::string name = entry.path().filename();
    nodes_[static_cast<size_t>(directory)].live[name] = node;
    nodes_[static_cast<size_t>(directory)].durable[name] = node;
    if (entry.is_directory()) {
      adopt(node, entry.path());
    } else {
      fs::create_hard_link(entry.path(), link_of(node));
      nodes_[static_cast<size_t>(node)].synced_bytes = entry.file_size();
    }
  }
}

std::optional<int> DiskModel::find(const std::string& path) const {
  const std::optional<fs::path> relative = below(root_, path);
  if (!relative) return std::nullopt;
  int node = 0;
  for (const fs::path& part : *relative) {
    if (part.empty() || part == ".") continue;
    const std::map<std::string, int>& entries = nodes_[static_cast<size_t>(node)].live;
    const auto found = entries.find(part);
    if (found == entries.end()) return std::nullopt;
    node = found->second;
  }
  return node;
}

std::optional<DiskModel::Edit> DiskModel::edit_of(const std::string& path,
                                                  std::optional<int> node) const {
  const fs::path normal = fs::path(path).lexically_normal();
  const std::optional<int> directory = find(normal.parent_path());
  if (!directory) return std::nullopt;
  return Edit{*directory, normal.filename(), node};
}

void DiskModel::make(const std::vector<std::optional<Edit>>& edits) {
  Change change;
  for (const std::optional<Edit>& edit : edits) {
    if (!edit) continue;
    std::map<std::string, int>& live = nodes_[static_cast<size_t>(edit->directory)].live;
    if (edit->node) {
      live[edit->name] = *edit->node;
    } else {
      live.erase(edit->name);
    }
    change.push_back(*edit);
  }
  if (!change.empty()) pending_.push_back(std::move(change));
}

void DiskModel::created_file(const std::string& path) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!below(root_, path)) return;
  make_parents(path);
  const int node = add_node(false);
  fs::create_hard_link(path, link_of(node));
  make({edit_of(path, node)});
}

void DiskModel::make_parents(const std::string& path) {
  const std::string parent = fs::path(path).lexically_normal().parent_path();
  if (find(parent)) return;
  make_parents(parent);
  make({edit_of(parent, add_node(true))});
}

void DiskModel::created_directory(const std::string& path) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (find(path)) return;
  make({edit_of(path, add_node(true))});
}

void DiskModel::removed(const std::string& path) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (find(path)) make({edit_of(path, std::nullopt)});
}

void DiskModel::linked(const std::string& from, const std::string& to) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (const std::optional<int> node = find(from)) make({edit_of(to, node)});
}

void DiskModel::renamed(const std::string& from, const std::string& to) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (const std::optional<int> node = find(from)) {
    make({edit_of(from, std::nullopt), edit_of(to, node)});
  }
}

void DiskModel::synced_file(const std::string& path, uint64_t length) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (const std::optional<int> node = find(path)) {
    nodes_[static_cast<size_t>(*node)].synced_bytes = length;
  }
}

void DiskModel::synced_directory(const std::string& path) {
  std::lock_guard<std::mutex> lock(mutex_);
  const std::optional<int> directory = find(path);
  if (!directory) return;
  std::vector<Change> left;
  for (Change& change : pending_) {
    const bool here = std::any_of(change.begin(), change.end(),
                                  [&](const Edit& edit) { return edit.directory == *directory; });
    if (!here) {
      left.push_back(std::move(change));
      continue;
    }
    for (const Edit& edit : change) {
      std::map<std::string, int>& durable = nodes_[static_cast<size_t>(edit.directory)].durable;
      if (edit.node) {
        durable[edit.name] = *edit.node;
      } else {
        durable.erase(edit.name);
      }
    }
  }
  pending_ = std::move(left);
}

void DiskModel::lose_power(const std::string& target, Loss loss, stress::Random* random) const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::map<std::string, int>> entries;
  for (const Node& node : nodes_) entries.push_back(node.durable);
  size_t kept = 0;
  if (loss == Loss::kSome) {
    kept = static_cast<size_t>(random->between(0, static_cast<int64_t>(pending_.size())));
  }
  for (size_t i = 0; i < kept; ++i) {
    for (const Edit& edit : pending_[i]) {
      std::map<std::string, int>& of = entries[static_cast<size_t>(edit.directory)];
      if (edit.node) {
        of[edit.name] = *edit.node;
      } else {
        of.erase(edit.name);
      }
    }
  }
  const std::function<void(int, const std::string&)> build = [&](int directory,
                                                                 const std::string& path) {
    fs::create_directory(path);
    for (const auto& [name, node] : entries[static_cast<size_t>(directory)]) {
      const std::string to = path + "/" + name;
      if (nodes_[static_cast<size_t>(node)].is_directory) {
        build(node, to);
        continue;
      }
      const uint64_t written = fs::file_size(link_of(node));
      uint64_t bytes = std::min(written, nodes_[static_cast<size_t>(node)].synced_bytes);
      if (loss == Loss::kSome) {
        bytes += static_cast<uint64_t>(random->between(0, static_cast<int64_t>(written - bytes)));
      }
      copy_prefix(link_of(node), to, bytes);
    }
  };
  build(0, target);
}

}  // namespace te::faults
