// Enums whose values have names, for people and files. The header of such an enum lists them in the values' order:
//   template <>
//   inline constexpr std::array kNames<Norm> = {"layernorm", "rmsnorm"};
#pragma once
#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

namespace llm {

template <class Enum>
inline constexpr std::nullptr_t kNames = nullptr;

template <class Enum>
concept HasNames = requires {
  kNames<Enum>.size();
};

template <HasNames Enum>
const char* name_of(Enum value) {
  return kNames<Enum>[static_cast<size_t>(value)];
}

inline std::optional<size_t> find_name(std::span<const char* const> names, std::string_view name) {
  for (size_t i = 0; i < names.size(); ++i)
    if (name == names[i]) return i;
  return {};
}

// None: no value has this name.
template <HasNames Enum>
std::optional<Enum> find_value(std::string_view name) {
  const std::optional<size_t> found = find_name(kNames<Enum>, name);
  return found ? std::optional(static_cast<Enum>(*found)) : std::nullopt;
}

}  // namespace llm
