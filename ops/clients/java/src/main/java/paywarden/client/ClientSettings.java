package paywarden.client;

import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.security.KeyFactory;
import java.security.KeyStore;
import java.security.PrivateKey;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.spec.PKCS8EncodedKeySpec;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Collection;
import java.util.HashSet;
import java.util.List;
import java.util.function.Supplier;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/**
 * What a client is made with. ops/clients/SPECIFICATION.md has what each setting means.
 *
 * <pre>{@code
 * new ClientSettings("https://paywarden:8443").deadlineMs(40).token(key).routeKey(routeKey)
 * }</pre>
 *
 * A client takes a copy, and raises WrongSettings with the name of a wrong setting.
 */
public final class ClientSettings implements Cloneable {
    private static final int URLS_MAX = 16, ROUTE_KEY_BYTES_MIN = 16;
    private static final Pattern TOKEN = Pattern.compile("[\\x21-\\x7e]{1,8192}");
    private static final Pattern URL =
            Pattern.compile("(https?)://((?:[A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+])(?::([0-9]{1,5}))?)(/[A-Za-z0-9._~/%-]*)?");

    /** A URL, taken apart. */
    record Target(String host, int port, String path, String authority, boolean isTls) {
        static Target of(String url) {
            Matcher match = URL.matcher(url);
            if (!match.matches()) {
                throw new WrongSettings("urls", "wanted http://host:port or https://host:port, and perhaps a path");
            }
            boolean isTls = match.group(1).equals("https");
            String authority = match.group(2);
            int port = match.group(3) == null ? (isTls ? 443 : 80) : Integer.parseInt(match.group(3));
            String host = match.group(3) == null ? authority : authority.substring(0, authority.lastIndexOf(':'));
            if (port < 1 || port > 65535) {
                throw new WrongSettings("urls", "wanted a port from 1 to 65535");
            }
            String path = (match.group(4) == null ? "" : match.group(4)) + "/v1/score";
            return new Target(host.replaceAll("[\\[\\]]", ""), port, path, authority, isTls);
        }
    }

    List<String> urls;
    double deadlineMs = 40;
    Supplier<String> token;
    byte[] routeKey;
    StandInPolicy policy = StandInPolicy.reviewAll();
    int connectionsMax = 64;
    double idleMs = 800;
    double connectTimeoutMs = 200;
    double resolveS = 5;
    int queueMax = 1000;
    int shadowMax = 100;
    int cardsMax = 100_000;
    Path ca, certificate, key;
    private String fixedToken;

    public ClientSettings(String... urls) {
        this.urls = List.of(urls);
    }

    public ClientSettings deadlineMs(double deadlineMs) {
        this.deadlineMs = deadlineMs;
        return this;
    }

    public ClientSettings token(String token) {
        this.fixedToken = token;
        this.token = () -> token;
        return this;
    }

    /** A function that gives the token, asked for each attempt. */
    public ClientSettings token(Supplier<String> token) {
        this.fixedToken = null;
        this.token = token;
        return this;
    }

    /** The key of the routing header, the same for all clients. */
    public ClientSettings routeKey(byte[] routeKey) {
        this.routeKey = routeKey.clone();
        return this;
    }

    public ClientSettings policy(StandInPolicy policy) {
        this.policy = policy;
        return this;
    }

    public ClientSettings connectionsMax(int connectionsMax) {
        this.connectionsMax = connectionsMax;
        return this;
    }

    public ClientSettings idleMs(double idleMs) {
        this.idleMs = idleMs;
        return this;
    }

    public ClientSettings connectTimeoutMs(double connectTimeoutMs) {
        this.connectTimeoutMs = connectTimeoutMs;
        return this;
    }

    public ClientSettings resolveS(double resolveS) {
        this.resolveS = resolveS;
        return this;
    }

    /** How many stand-ins wait to be asked about again; 0 turns that off. */
    public ClientSettings queueMax(int queueMax) {
        this.queueMax = queueMax;
        return this;
    }

    public ClientSettings shadowMax(int shadowMax) {
        this.shadowMax = shadowMax;
        return this;
    }

    public ClientSettings cardsMax(int cardsMax) {
        this.cardsMax = cardsMax;
        return this;
    }

    /** Whom to trust, a file in PEM; the system's authorities without one. */
    public ClientSettings ca(Path ca) {
        this.ca = ca;
        return this;
    }

    /** The client's own certificate and its key, files in PEM; the key in PKCS #8, not encrypted. */
    public ClientSettings certificate(Path certificate, Path key) {
        this.certificate = certificate;
        this.key = key;
        return this;
    }

    /** Returns a copy that a client may keep. Raises WrongSettings. */
    ClientSettings checked() {
        ClientSettings copy;
        try {
            copy = (ClientSettings) clone();
        } catch (CloneNotSupportedException error) {
            throw new AssertionError(error);
        }
        copy.urls = urls.stream().map(url -> url.replaceAll("/+$", "")).toList();
        if (urls.isEmpty() || urls.size() > URLS_MAX || new HashSet<>(copy.urls).size() < urls.size()) {
            throw new WrongSettings("urls", "wanted 1 to " + URLS_MAX + " different ones");
        }
        copy.urls.forEach(Target::of);
        require("deadline_ms", deadlineMs, 1, CallPlan.DEADLINE_MS_MAX);
        require("idle_ms", idleMs, 1e-3, 1e9);
        require("connect_timeout_ms", connectTimeoutMs, 1e-3, 1e9);
        require("resolve_s", resolveS, 1e-3, 1e9);
        require("connections_max", connectionsMax, 1, 1e9);
        require("cards_max", cardsMax, 1, 1e9);
        require("shadow_max", shadowMax, 1, 1e9);
        require("queue_max", queueMax, 0, 1e9);
        if (fixedToken != null) {
            requireToken(fixedToken);
        }
        if (routeKey != null && routeKey.length < ROUTE_KEY_BYTES_MIN) {
            throw new WrongSettings("route_key", "wanted at least " + ROUTE_KEY_BYTES_MIN + " bytes");
        }
        if ((certificate == null) != (key == null)) {
            throw new WrongSettings("key", "wanted with a certificate, and only with one");
        }
        return copy;
    }

    private static void require(String name, double value, double least, double most) {
        if (!(value >= least && value <= most)) {
            throw new WrongSettings(name, "wanted " + least + " to " + most + ", got " + value);
        }
    }

    /** Returns the token. Raises WrongSettings, without the token in its text. */
    static String requireToken(String token) {
        if (token == null || !TOKEN.matcher(token).matches()) {
            throw new WrongSettings("token", "wanted 1 to 8192 printable characters of ASCII without spaces");
        }
        return token;
    }

    /** Returns the context of https; null without such a URL. Raises WrongSettings (a file). */
    SSLContext tls() {
        if (urls.stream().noneMatch(url -> url.startsWith("https:"))) {
            return null;
        }
        try {
            SSLContext context = SSLContext.getInstance("TLS");
            context.init(
                    certificate == null ? null : ownKeys().getKeyManagers(),
                    ca == null ? null : trusted().getTrustManagers(),
                    null);
            return context;
        } catch (GeneralSecurityException error) {
            throw new WrongSettings("ca", "this Java has no TLS");
        }
    }

    private TrustManagerFactory trusted() {
        try {
            KeyStore store = emptyStore();
            int number = 0;
            for (Certificate one : certificatesOf(ca)) {
                store.setCertificateEntry("ca-" + number++, one);
            }
            if (number == 0) {
                throw new IOException();
            }
            TrustManagerFactory factory = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
            factory.init(store);
            return factory;
        } catch (GeneralSecurityException | IOException error) {
            throw new WrongSettings("ca", "wanted a readable file of certificates");
        }
    }

    private KeyManagerFactory ownKeys() {
        try {
            KeyStore store = emptyStore();
            Certificate[] chain = certificatesOf(certificate).toArray(Certificate[]::new);
            store.setKeyEntry("own", privateKeyOf(key), new char[0], chain);
            KeyManagerFactory factory = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
            factory.init(store, new char[0]);
            return factory;
        } catch (GeneralSecurityException | IOException | IllegalArgumentException error) {
            throw new WrongSettings(
                    "certificate", "wanted readable files of a certificate and its key, the key in PKCS #8");
        }
    }

    private static KeyStore emptyStore() throws GeneralSecurityException, IOException {
        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        return store;
    }

    private static Collection<? extends Certificate> certificatesOf(Path path)
            throws GeneralSecurityException, IOException {
        try (InputStream text = new ByteArrayInputStream(Files.readAllBytes(path))) {
            return new ArrayList<>(CertificateFactory.getInstance("X.509").generateCertificates(text));
        }
    }

    private static PrivateKey privateKeyOf(Path path) throws GeneralSecurityException, IOException {
        String text = Files.readString(path);
        String begin = "-----BEGIN PRIVATE KEY-----", end = "-----END PRIVATE KEY-----";
        int from = text.indexOf(begin), to = text.indexOf(end);
        if (from < 0 || to < from) {
            throw new IOException();
        }
        byte[] encoded = Base64.getMimeDecoder().decode(text.substring(from + begin.length(), to));
        for (String algorithm : new String[] {"RSA", "EC", "Ed25519"}) {
            try {
                return KeyFactory.getInstance(algorithm).generatePrivate(new PKCS8EncodedKeySpec(encoded));
            } catch (GeneralSecurityException error) {
                // Of another algorithm.
            }
        }
        throw new IOException();
    }
}
