"""Settings of one machine: `everswarm.toml`, then `EVERSWARM_*` variables, which win. Never secrets in TOML.

Nested names take two underscores: `EVERSWARM_ENGINE__THREADS=2`. Knows no room; the sections only say what may be set.
"""

from everswarm.settings.feedback import CurationRules, CurationSettings, FeedbackSettings, ScrubberName
from everswarm.settings.loading import SECTIONS, Settings, config_path, load_settings
from everswarm.settings.machine import (
    CREDENTIAL_STARTS,
    EMBEDDED_MODEL,
    PROFILES,
    CacheSettings,
    CycleSettings,
    EndpointSettings,
    EngineSettings,
    GatewaySettings,
    QuotaSettings,
    WorkerSettings,
)
from everswarm.settings.section import Section, meant
from everswarm.settings.swarm import (
    BUILT_IN_TOOLS,
    KINDS,
    STRATEGIES,
    WEB_ROLE_DEFAULTS,
    WEB_ROLES,
    RoleSettings,
    SwarmSettings,
    ToolServerSettings,
)
from everswarm.settings.teacher import Precision, TeacherSettings, TeacherSource, parse_teacher

__all__ = [
    "BUILT_IN_TOOLS",
    "CREDENTIAL_STARTS",
    "EMBEDDED_MODEL",
    "KINDS",
    "PROFILES",
    "SECTIONS",
    "STRATEGIES",
    "WEB_ROLES",
    "WEB_ROLE_DEFAULTS",
    "CacheSettings",
    "CurationRules",
    "CurationSettings",
    "CycleSettings",
    "EndpointSettings",
    "EngineSettings",
    "FeedbackSettings",
    "GatewaySettings",
    "Precision",
    "QuotaSettings",
    "RoleSettings",
    "ScrubberName",
    "Section",
    "Settings",
    "SwarmSettings",
    "TeacherSettings",
    "TeacherSource",
    "ToolServerSettings",
    "WorkerSettings",
    "config_path",
    "load_settings",
    "meant",
    "parse_teacher",
]
