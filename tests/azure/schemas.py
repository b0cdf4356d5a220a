"""Request bodies against Microsoft's published schemas (azure-resource-manager-schemas).

The schemas describe deployment templates; three things differ in a request: subtypes are told
apart by a discriminator, "[expressions]" do not occur, and enumerations ignore case.
"""

import copy
import functools
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft4Validator, ValidationError, validators
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

# The SDK's own: it sends the version of its file hash as a number where strings are asked for.
KNOWN = {("workspaces_codes_versions", "properties/properties/hash_version"),
         ("workspaces_models_versions", "properties/properties/hash_version")}


def problems(folder: Path, path: str, version: str, body: dict) -> list[str]:
    """What is wrong with the body of a PUT to `path` below the workspace; empty if nothing."""
    parts = path.strip("/").split("/")
    kind = "workspaces_" + "_".join(parts[0::2])
    document, registry = _document(folder / f"{version}.json")
    if kind not in document["resourceDefinitions"]:
        return [f"no schema of {kind} in {version}"]
    resource = {**body, "name": parts[-1], "apiVersion": version,
                "type": "Microsoft.MachineLearningServices/workspaces/" + "/".join(parts[0::2])}
    uri = document["id"].rstrip("#")
    check = Validator({"$ref": f"{uri}#/resourceDefinitions/{kind}"}, registry=registry)
    places = [("/".join(map(str, error.absolute_path)), error.message[:200])
              for error in check.iter_errors(resource)]
    return [f"{place}: {said}" for place, said in places if (kind, place) not in KNOWN]


@functools.cache
def _document(path: Path) -> tuple[dict, Registry]:
    document = json.loads(path.read_text())
    original = copy.deepcopy(document["definitions"])
    for name, definition in original.items():
        parts = definition.get("allOf")
        if isinstance(parts, list) and len(parts) == 2 and "oneOf" in parts[1]:
            document["definitions"][name] = {"subtypes": _subtypes(original, *parts)}
    _drop_expressions(document)
    registry = Registry().with_resource(
        document["id"].rstrip("#"),
        Resource.from_contents(document, default_specification=DRAFT4))
    return document, registry


def _subtypes(definitions: dict, base: dict, choice: dict) -> dict:
    """The closed schema of each subtype by the value of the discriminator."""
    result, key = {}, None
    for alternative in choice["oneOf"]:
        name = alternative["allOf"][0]["$ref"].rsplit("/", 1)[1]
        [(key, value)] = alternative["allOf"][1]["properties"].items()
        schema = copy.deepcopy(definitions[name])
        if "allOf" in schema:  # has subtypes of its own
            result[value["const"].lower()] = {"$ref": f"#/definitions/{name}"}
            continue
        schema["properties"] = {**base.get("properties", {}), **schema.get("properties", {})}
        schema["additionalProperties"] = False
        schema["required"] = sorted({*base.get("required", []), *schema.get("required", [])})
        result[value["const"].lower()] = schema
    return {"key": key, "schemas": result}


def _drop_expressions(node: Any) -> None:
    if isinstance(node, list):
        for child in node:
            _drop_expressions(child)
    elif isinstance(node, dict):
        if "oneOf" in node:
            left = [choice for choice in node["oneOf"]
                    if not str(choice.get("$ref", "")).endswith("/expression")]
            if len(left) == 1:
                del node["oneOf"]
                node.update(left[0])
            else:
                node["oneOf"] = left
        for child in list(node.values()):
            _drop_expressions(child)


def _check_subtype(validator, rule, instance, schema):
    if not isinstance(instance, dict):
        yield ValidationError(f"{instance!r} is not an object")
        return
    kind = instance.get(rule["key"])
    if not isinstance(kind, str) or kind.lower() not in rule["schemas"]:
        yield ValidationError(f"{rule['key']} is {kind!r}, not one of {sorted(rule['schemas'])}")
        return
    yield from validator.descend(instance, rule["schemas"][kind.lower()], schema_path=kind)


def _check_enum(validator, values, instance, schema):
    if str(instance).lower() not in {str(value).lower() for value in values}:
        yield ValidationError(f"{instance!r} is not one of {values!r}")


Validator = validators.extend(Draft4Validator, {"enum": _check_enum, "subtypes": _check_subtype})
